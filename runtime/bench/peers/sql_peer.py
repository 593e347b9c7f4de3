"""DuckDB, Polars and Dask for `cargo xtask bench tpch`: requests and answers as JSON lines.

usage: sql_peer.py duckdb|polars|dask THREADS

Each request on standard input is answered by one line: the seconds from the text to the rows in
this process, the rows as text, and how to compare each column. A request that an engine has no
answer for is answered by `{"error": …}`.
"""

import datetime
import decimal
import glob
import json
import os
import sys
import time


def cell(value):
    if value is None or value != value:
        return None
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat()
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    return str(value)


def kind(values):
    values = [value for value in values if value is not None]
    if any(isinstance(value, float) for value in values):
        return "float"
    is_number = values and all(isinstance(value, (int, decimal.Decimal)) for value in values)
    return "number" if is_number else "text"


class DuckDB:
    def __init__(self, threads):
        import duckdb

        self.connect = lambda: duckdb.connect(config={"threads": threads})
        self.session = self.connect()

    def open(self, request):
        for table in request["tables"]:
            files = f"{request['folder']}/{table}/*.parquet"
            self.session.sql(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{files}')")

    def query(self, request):
        return self.session.sql(request["sql"].strip().rstrip(";")).to_arrow_table()

    def csv(self, request):
        session = self.connect()
        session.execute(
            f"CREATE TABLE clean AS SELECT * FROM read_csv('{request['input']}/*.csv', header = true)"
            " WHERE id IS NOT NULL AND value IS NOT NULL AND category IS NOT NULL"
            " AND timestamp IS NOT NULL"
        )
        target = f"'{request['output']}' (FORMAT parquet, PARTITION_BY (category))"
        session.execute(f"COPY clean TO {target}")
        return session.sql(
            "SELECT category, avg(value), stddev_samp(value), count(*) FROM clean"
            " GROUP BY category ORDER BY category"
        ).to_arrow_table()

    def rows(self, table):
        return [list(row) for row in zip(*(column.to_pylist() for column in table.columns))]


class Polars:
    def __init__(self, threads):
        os.environ["POLARS_MAX_THREADS"] = str(threads)
        import polars

        self.polars = polars
        self.session = polars.SQLContext()

    def open(self, request):
        for table in request["tables"]:
            files = f"{request['folder']}/{table}/*.parquet"
            self.session.register(table, self.polars.scan_parquet(files))

    def query(self, request):
        frame = self.session.execute(request["sql"].strip().rstrip(";"))
        return frame.collect(engine="streaming")

    def csv(self, request):
        column = self.polars.col("value")
        files = f"{request['input']}/*.csv"
        clean = self.polars.scan_csv(files, try_parse_dates=True).drop_nulls()
        clean = clean.collect(engine="streaming")
        clean.write_parquet(request["output"] + "/", partition_by="category")
        groups = clean.group_by("category")
        mean, std = column.mean().alias("mean"), column.std().alias("std")
        return groups.agg(mean, std, self.polars.len().alias("rows")).sort("category")

    def rows(self, table):
        return [list(row) for row in table.rows()]


class Dask:
    def __init__(self, threads):
        import dask.dataframe
        from distributed import Client, LocalCluster

        self.frames = dask.dataframe
        self.dask = dask
        self.cluster = LocalCluster(n_workers=threads, threads_per_worker=1, dashboard_address=None)
        self.client = Client(self.cluster)

    def open(self, request):
        self.folder = doubles(request["folder"], request["tables"])

    def table(self, name):
        return self.frames.read_parquet(f"{self.folder}/{name}")

    def query(self, request):
        number = request["number"]
        text = getattr(self, f"q{number}", None)
        if text is None:
            raise NotImplementedError(f"Dask has no text for query {number}")
        return text()

    def q1(self):
        rows = self.table("lineitem")
        rows = rows[rows.l_shipdate <= "1998-09-02"]
        rows["disc_price"] = rows.l_extendedprice * (1 - rows.l_discount)
        rows["charge"] = rows.disc_price * (1 + rows.l_tax)
        result = rows.groupby(["l_returnflag", "l_linestatus"]).agg(
            sum_qty=("l_quantity", "sum"),
            sum_base_price=("l_extendedprice", "sum"),
            sum_disc_price=("disc_price", "sum"),
            sum_charge=("charge", "sum"),
            avg_qty=("l_quantity", "mean"),
            avg_price=("l_extendedprice", "mean"),
            avg_disc=("l_discount", "mean"),
            count_order=("l_orderkey", "size"),
        )
        return result.compute().reset_index().sort_values(["l_returnflag", "l_linestatus"])

    def q3(self):
        customer, orders, lineitem = map(self.table, ("customer", "orders", "lineitem"))
        customer = customer[customer.c_mktsegment == "BUILDING"][["c_custkey"]]
        orders = orders[orders.o_orderdate < "1995-03-15"]
        orders = orders[["o_orderkey", "o_custkey", "o_orderdate", "o_shippriority"]]
        lineitem = lineitem[lineitem.l_shipdate > "1995-03-15"]
        lineitem["revenue"] = lineitem.l_extendedprice * (1 - lineitem.l_discount)
        lineitem = lineitem[["l_orderkey", "revenue"]]
        joined = orders.merge(customer, left_on="o_custkey", right_on="c_custkey")
        joined = joined.merge(lineitem, left_on="o_orderkey", right_on="l_orderkey")
        keys = ["l_orderkey", "o_orderdate", "o_shippriority"]
        result = joined.groupby(keys)["revenue"].sum().compute().reset_index()
        result = result.sort_values(["revenue", "o_orderdate"], ascending=[False, True]).head(10)
        return result[["l_orderkey", "revenue", "o_orderdate", "o_shippriority"]]

    def q5(self):
        names = ("customer", "orders", "lineitem", "supplier", "nation", "region")
        customer, orders, lineitem, supplier, nation, region = map(self.table, names)
        region = region[region.r_name == "ASIA"][["r_regionkey"]]
        nation = nation[["n_nationkey", "n_name", "n_regionkey"]]
        nation = nation.merge(region, left_on="n_regionkey", right_on="r_regionkey")
        supplier = supplier[["s_suppkey", "s_nationkey"]]
        supplier = supplier.merge(nation, left_on="s_nationkey", right_on="n_nationkey")
        orders = orders[(orders.o_orderdate >= "1994-01-01") & (orders.o_orderdate < "1995-01-01")]
        orders = orders[["o_orderkey", "o_custkey"]]
        customer = customer[["c_custkey", "c_nationkey"]]
        orders = orders.merge(customer, left_on="o_custkey", right_on="c_custkey")
        lineitem["revenue"] = lineitem.l_extendedprice * (1 - lineitem.l_discount)
        lineitem = lineitem[["l_orderkey", "l_suppkey", "revenue"]]
        joined = lineitem.merge(orders, left_on="l_orderkey", right_on="o_orderkey")
        joined = joined.merge(
            supplier, left_on=["l_suppkey", "c_nationkey"], right_on=["s_suppkey", "s_nationkey"]
        )
        result = joined.groupby("n_name")["revenue"].sum().compute().reset_index()
        return result.sort_values("revenue", ascending=False)

    def q6(self):
        rows = self.table("lineitem")
        wanted = (rows.l_shipdate >= "1994-01-01") & (rows.l_shipdate < "1995-01-01")
        # Bounds between two cents: the values are floats here.
        wanted &= (rows.l_discount > 0.045) & (rows.l_discount < 0.075) & (rows.l_quantity < 24)
        rows = rows[wanted]
        revenue = (rows.l_extendedprice * rows.l_discount).sum().compute()
        import pandas

        return pandas.DataFrame({"revenue": [revenue]})

    def q10(self):
        names = ("customer", "orders", "lineitem", "nation")
        customer, orders, lineitem, nation = map(self.table, names)
        orders = orders[(orders.o_orderdate >= "1993-10-01") & (orders.o_orderdate < "1994-01-01")]
        orders = orders[["o_orderkey", "o_custkey"]]
        lineitem = lineitem[lineitem.l_returnflag == "R"]
        lineitem["revenue"] = lineitem.l_extendedprice * (1 - lineitem.l_discount)
        lineitem = lineitem[["l_orderkey", "revenue"]]
        joined = lineitem.merge(orders, left_on="l_orderkey", right_on="o_orderkey")
        joined = joined.merge(customer, left_on="o_custkey", right_on="c_custkey")
        nation = nation[["n_nationkey", "n_name"]]
        joined = joined.merge(nation, left_on="c_nationkey", right_on="n_nationkey")
        keys = ["c_custkey", "c_name", "c_acctbal", "c_phone", "n_name", "c_address", "c_comment"]
        result = joined.groupby(keys)["revenue"].sum().compute().reset_index()
        result = result.sort_values("revenue", ascending=False).head(20)
        columns = ["c_custkey", "c_name", "revenue", "c_acctbal", "n_name", "c_address", "c_phone"]
        return result[columns + ["c_comment"]]

    def csv(self, request):
        files = f"{request['input']}/*.csv"
        clean = self.frames.read_csv(files, parse_dates=["timestamp"]).dropna()
        groups = clean.groupby("category")["value"].agg(["mean", "std", "count"])
        write = clean.to_parquet(request["output"], partition_on="category", compute=False)
        result, _ = self.dask.compute(groups, write)
        return result.reset_index().sort_values("category")

    def rows(self, table):
        columns = []
        for name in table.columns:
            values = table[name]
            if values.dtype.kind == "M":
                values = [stamp.to_pydatetime() for stamp in values]
            columns.append([getattr(value, "item", lambda v=value: v)() for value in values])
        return [list(row) for row in zip(*columns)]


def doubles(folder, tables):
    """The same tables with money as floats and days as timestamps, as a Dask user would have them."""
    import pyarrow
    from pyarrow import parquet

    target = folder.rstrip("/") + "-doubles"
    if os.path.isdir(target):
        return target
    draft = f"{target}-{os.getpid()}"
    for table in tables:
        for number, file in enumerate(sorted(glob.glob(f"{folder}/{table}/*.parquet"))):
            rows = parquet.read_table(file)
            for position, field in enumerate(rows.schema):
                if pyarrow.types.is_decimal(field.type):
                    kind = pyarrow.float64()
                elif pyarrow.types.is_date(field.type):
                    kind = pyarrow.timestamp("ns")
                elif pyarrow.types.is_string_view(field.type):
                    kind = pyarrow.string()
                else:
                    continue
                values = rows.column(position).cast(kind)
                rows = rows.set_column(position, pyarrow.field(field.name, kind), values)
            os.makedirs(f"{draft}/{table}", exist_ok=True)
            parquet.write_table(rows, f"{draft}/{table}/part-{number}.parquet", row_group_size=2**17)
    os.rename(draft, target)
    return target


def serve(engine):
    for line in sys.stdin:
        request = json.loads(line)
        try:
            start = time.perf_counter()
            table = getattr(engine, request["kind"])(request)
            seconds = time.perf_counter() - start
            rows = [] if table is None else engine.rows(table)
            reply = {
                "seconds": seconds,
                "columns": [kind(values) for values in zip(*rows)],
                "rows": [[cell(value) for value in row] for row in rows],
            }
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    chosen = {"duckdb": DuckDB, "polars": Polars, "dask": Dask}[sys.argv[1]]
    serve(chosen(int(sys.argv[2])))
