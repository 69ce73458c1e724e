#!/bin/sh
# Before Airflow's first start, and before each one after it: tables, pools, roles. Safe to repeat.
set -eu
airflow db migrate
# a pool that is there keeps the slots that a person gave it
airflow pools get gpu > /dev/null 2>&1 || airflow pools set gpu 1 "training: one at a time"
airflow pools get transform > /dev/null 2>&1 || airflow pools set transform 1 "dbt and the audits: one at a time"
python -m infra.compose.settle
