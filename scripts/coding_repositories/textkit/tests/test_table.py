import unittest

from textkit.table import slug, table, truncate, widths


class TableTest(unittest.TestCase):
    def test_columns_are_as_wide_as_their_longest_cell(self):
        self.assertEqual(widths([["a", "bbb"], ["cc"], ["", "b", "x"]]), [2, 3, 1])

    def test_columns_stand_below_one_another(self):
        self.assertEqual(table([["a", "b"], ["long", "c"]]), ["a     b", "long  c"])
        self.assertEqual(table([["a", ""], ["b", "c"]], gap=1), ["a", "b c"])

    def test_a_slug_is_cut_between_words(self):
        self.assertEqual(slug("Hello, World!"), "hello-world")
        self.assertEqual(slug("one two three four", most=13), "one-two-three")
        self.assertEqual(slug("one two three four", most=12), "one-two")
        self.assertEqual(slug("?!"), "untitled")
        self.assertEqual(slug("abcdefghijklmnopqrst"), "abcdefghijklmnopqrst")
        self.assertEqual(slug("abcdefghijklmnopqrstu"), "untitled")

    def test_only_what_is_too_long_is_cut(self):
        self.assertEqual(truncate("abcdef", 6), "abcdef")
        self.assertEqual(truncate("abcdefg", 6), "abc...")
