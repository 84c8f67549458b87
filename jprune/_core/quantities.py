"""Numbers as text for tables: three digits and a prefix, as in `4.72M` or `12.3 µs`."""

_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_PREFIXES = (*_COUNTS, (1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))


def rounded(x: int | float) -> str:
    """Formats a count: exact below 9,995, three digits and a prefix from there on.

    Args:
      x: a number, not negative.

    Returns:
      Text of at most six characters below 10^15.

    Example:
      >>> rounded(9994), rounded(12345), rounded(4_718_592)
      ('9,994', '12.3k', '4.72M')
    """
    for unit, name in _COUNTS:
        if x >= max(unit, 1e4) * 0.9995:
            return f"{x / unit:#.3g}".rstrip(".") + name
    return f"{x:,.5g}"


def quantity(x: float, unit: str) -> str:
    """Formats a quantity with three digits and an SI prefix.

    Args:
      x: a number in that unit, not negative.
      unit: symbol of the unit, such as `s`, `J` or `B`.

    Returns:
      Text such as `12.3 µs`.

    Example:
      >>> quantity(1.234e-5, "s"), quantity(0.0, "J"), quantity(999.9, "B")
      ('12.3 µs', '0 J', '1.00 kB')
    """
    if not x:
        return f"0 {unit}"
    fits = (each for each in _PREFIXES if x >= each[0] * 0.9995)
    size, prefix = next(fits, _PREFIXES[-1])
    whole = unit == "B" and prefix == ""  # there are no parts of bytes
    text = f"{x:.0f}" if whole else f"{x / size:#.3g}".rstrip(".")
    return f"{text} {prefix}{unit}"
