import unittest

from textkit.wrap import center, indent, wrap


class WrapTest(unittest.TestCase):
    def test_a_line_may_be_full(self):
        self.assertEqual(wrap("aa bb cc", 5), ["aa bb", "cc"])
        self.assertEqual(wrap("aa bb cc", 4), ["aa", "bb", "cc"])

    def test_a_long_word_has_a_line_of_its_own(self):
        self.assertEqual(wrap("a abcdefgh b", 4), ["a", "abcdefgh", "b"])

    def test_no_words_are_no_lines(self):
        self.assertEqual(wrap("  \n ", 10), [])

    def test_the_middle_leans_left(self):
        self.assertEqual(center("ab", 6), "  ab  ")
        self.assertEqual(center("ab", 5, "."), ".ab..")
        self.assertEqual(center("abcd", 2), "abcd")

    def test_blank_lines_stay_blank(self):
        self.assertEqual(indent("a\n\nb", "  "), "  a\n\n  b")
        self.assertEqual(indent("a\nb\nc", "  ", first="* "), "* a\n  b\n  c")
