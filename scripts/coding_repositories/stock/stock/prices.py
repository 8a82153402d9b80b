"""What a basket costs."""


def with_discount(price, percent):
    """A price less so many percent, rounded to the nearest cent, half a cent up."""
    if not 0 <= percent <= 100:
        raise ValueError("percent must be 0..100")
    return (price * (100 - percent) + 50) // 100


def bulk_percent(count):
    """10 % off from 10 of a thing, 20 % off from 50."""
    if count >= 50:
        return 20
    if count >= 10:
        return 10
    return 0


def basket_total(basket, prices):
    """The price of a basket {name: count}; every third thing of a kind costs half below ten of it."""
    total = 0
    for name, count in basket.items():
        price = prices[name]
        if count < 10:
            halves = count // 3
            total += (count - halves) * price + halves * (price // 2)
        else:
            total += with_discount(count * price, bulk_percent(count))
    return total


def change(paid, cost, coins=(200, 100, 50, 20, 10, 5, 2, 1)):
    """The fewest coins for what is paid too much, the largest first; ValueError if it is too little."""
    rest = paid - cost
    if rest < 0:
        raise ValueError("not enough")
    given = []
    for coin in coins:
        while rest >= coin:
            given.append(coin)
            rest -= coin
    return given
