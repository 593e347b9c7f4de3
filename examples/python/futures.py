"""Work that depends on results: new tasks are sent as others are done."""

from distributed import Client, as_completed

#: Places after which no more are added.
ROUNDS = 40


def cost(x):
    """A valley with ripples; its floor is near 3."""
    return (x - 3) ** 2 + 0.1 * ((x * 7) % 1)


def measure(x):
    return x, cost(x)


if __name__ == "__main__":
    with Client() as client:
        step, tried = 4.0, 0
        best = (10.0, cost(10.0))
        running = as_completed(client.map(measure, [-8.0, -2.0, 4.0, 9.0]), with_results=True)
        for _, (x, found) in running:
            tried += 1
            if found < best[1]:
                best = (x, found)
            if tried % 4 == 0 and tried <= ROUNDS:
                step /= 2
                running.update(client.map(measure, [best[0] + step * k for k in (-1.5, -0.5, 0.5, 1.5)]))
        print(f"{tried} places were tried")
        print(f"the lowest is near {best[0]:.1f}")
