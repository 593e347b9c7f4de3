"""Steps that wait for each other, written as plain functions: a delayed pipeline."""

import dask
from distributed import Client


@dask.delayed
def extract(day):
    """The readings of one day."""
    return [(day * 37 + hour * 17) % 101 for hour in range(24)]


@dask.delayed
def clean(readings):
    """Without those that no sensor can have."""
    return [reading for reading in readings if 5 <= reading <= 95]


@dask.delayed
def summarise(day, readings):
    """One line for one day."""
    return {"day": day, "readings": len(readings), "mean": sum(readings) / len(readings)}


@dask.delayed
def report(days):
    """The whole week."""
    warmest = max(days, key=lambda day: day["mean"])
    return sum(day["readings"] for day in days), warmest


if __name__ == "__main__":
    with Client() as client:
        days = [summarise(day, clean(extract(day))) for day in range(7)]
        readings, warmest = report(days).compute()
        print(f"{readings} readings in 7 days")
        print(f"day {warmest['day']} was the warmest: {warmest['mean']:.2f} on average")
