"""Breaking text into lines."""


def wrap(text, width):
    """Lines of at most `width` characters, broken between words; a longer word has a line of its own."""
    lines, line = [], ""
    for word in text.split():
        if not line:
            line = word
        elif len(line) + 1 + len(word) <= width:
            line += " " + word
        else:
            lines.append(line)
            line = word
    if line:
        lines.append(line)
    return lines


def center(line, width, fill=" "):
    """The line in the middle of `width`; of an odd rest, the larger half is on the right."""
    rest = max(0, width - len(line))
    left = rest // 2
    return fill * left + line + fill * (rest - left)


def indent(text, prefix, first=None):
    """Every line behind `prefix`, the first behind `first` if it is given; blank lines stay blank."""
    out = []
    for number, line in enumerate(text.split("\n")):
        chosen = first if number == 0 and first is not None else prefix
        out.append(chosen + line if line.strip() else "")
    return "\n".join(out)
