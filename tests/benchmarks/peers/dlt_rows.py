"""dlt loads a CSV file into PostgreSQL and prints the seconds it took, without those of starting Python.

Usage: dlt_rows.py FILE DATASET FORMAT, where FORMAT is insert_values (dlt's default, records one by one), csv or
parquet (Arrow tables; dlt's page on PostgreSQL calls these fast, parquet goes through ADBC). DSN in the environment.
"""

import os
import sys
import tempfile
import time

import dlt
import pyarrow as pa
import pyarrow.csv

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
file, dataset, form = sys.argv[1:]
convert = pyarrow.csv.ConvertOptions(
    strings_can_be_null=True, quoted_strings_can_be_null=False, column_types={"at": pa.timestamp("us", "UTC")}
)


@dlt.resource(name="rows", write_disposition="append", primary_key="id")
def rows():
    for batch in pyarrow.csv.open_csv(file, convert_options=convert):
        yield batch.to_pylist() if form == "insert_values" else pa.Table.from_batches([batch])


with tempfile.TemporaryDirectory() as folder:
    pipeline = dlt.pipeline(
        "bench",
        pipelines_dir=folder,
        destination=dlt.destinations.postgres(os.environ["DSN"]),
        dataset_name=dataset,
    )
    begin = time.perf_counter()
    pipeline.run(rows(), loader_file_format=form)
    print(time.perf_counter() - begin)
