"""Tables and names made of text."""


def widths(rows):
    """The width of each column: that of its longest cell."""
    columns = max(len(row) for row in rows)
    found = [0] * columns
    for row in rows:
        for place, cell in enumerate(row):
            if len(cell) > found[place]:
                found[place] = len(cell)
    return found


def table(rows, gap=2):
    """Rows as lines, columns flush left, without blanks at the ends of lines."""
    sizes = widths(rows)
    lines = []
    for row in rows:
        cells = [cell.ljust(sizes[place]) for place, cell in enumerate(row)]
        lines.append((" " * gap).join(cells).rstrip())
    return lines


def slug(title, most=20):
    """Lower case, words joined by '-', cut between words at `most` characters."""
    words = "".join(c if c.isalnum() else " " for c in title.lower()).split()
    out = ""
    for word in words:
        longer = f"{out}-{word}" if out else word
        if len(longer) > most:
            break
        out = longer
    return out or "untitled"


def truncate(text, most, mark="..."):
    """At most `most` characters, the end replaced by `mark` where something was cut."""
    if len(text) <= most:
        return text
    return text[: most - len(mark)] + mark
