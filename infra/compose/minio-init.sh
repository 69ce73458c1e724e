#!/bin/sh
# Buckets, and for each role a user with its policy. Safe to repeat. No password stands on a command line.
set -eu
folder=/etc/lyrebird/minio
MC_HOST_store="http://admin:$(cat /run/secrets/minio_admin)@minio:9000"
MC_CONFIG_DIR=/tmp/mc
export MC_HOST_store MC_CONFIG_DIR

while read -r bucket; do
    mc mb --ignore-existing "store/$bucket"
done < "$folder/buckets"

for file in "$folder"/*.password; do
    user=${file##*/}
    user=${user%.password}
    { printf '%s\n' "$user"; cat "$file"; } | mc admin user add store
    mc admin policy create store "$user" "$folder/$user.json"
    # attaching what is attached already is an error to mc
    case "$(mc admin user info store "$user" --json)" in
        *'"policyName"'*"\"$user\""*) ;;
        *) mc admin policy attach store "$user" --user "$user" ;;
    esac
done
