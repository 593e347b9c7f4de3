"""Which carriers from New York were late in 2013? A data frame on a cluster.

The files are read by the workers and, for their columns, by this program: both find them under the
same name.
"""

import sys

import dask.dataframe as dd
from distributed import Client

if __name__ == "__main__":
    location = sys.argv[1] if len(sys.argv) > 1 else "data/flights.parquet"
    with Client() as client:
        flights = dd.read_parquet(location, columns=["carrier", "arr_delay", "distance"])
        flights = flights.repartition(npartitions=4)
        flown = flights.dropna(subset=["arr_delay"])
        late = flown.assign(is_late=flown["arr_delay"] > 30)
        by_carrier = late.groupby("carrier").agg({"arr_delay": "mean", "is_late": "mean", "distance": "count"})
        table = by_carrier.compute().sort_values("arr_delay", ascending=False)
        print(f"{'carrier':8}{'flights':>9}{'minutes late':>14}{'late by 30':>12}")
        for carrier, row in table.head(8).iterrows():
            print(f"{carrier:8}{row['distance']:9.0f}{row['arr_delay']:14.1f}{row['is_late']:12.1%}")
