#!/bin/bash
# A PostgreSQL server of your own for studies. It needs the programs of PostgreSQL and no root.
#
#   postgresql.sh start|stop
#
# PGDATA (~/postgres) is its folder, on a disk of this machine; PGPORT (5466) its port. The password is in
# ~/.erl-password, for all servers that you start.
set -eu

export PGDATA=${PGDATA:-$HOME/postgres} PGPORT=${PGPORT:-5466}
password=$HOME/.erl-password

if [ "$(id -u)" = 0 ]; then
    echo "PostgreSQL does not run as root: use another user" >&2
    exit 2
fi
if ! command -v initdb >/dev/null; then # Debian and Fedora keep the programs outside the PATH
    newest=$(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin 2>/dev/null | sort -V | tail -n 1)
    PATH=$PATH:$newest
fi
if ! command -v initdb >/dev/null; then
    echo "initdb is missing: install PostgreSQL (on Debian: apt install postgresql)" >&2
    exit 2
fi

# PostgreSQL sees the processes of its own machine only: two servers on one folder would destroy the data.
owner=$(cat "$PGDATA/host" 2>/dev/null || true)
if [ -e "$PGDATA/postmaster.pid" ] && [ -n "$owner" ] && [ "$owner" != "$(hostname)" ]; then
    echo "the server of $PGDATA runs on $owner: use this script there" >&2
    echo "(if $owner is gone for good, remove $PGDATA/postmaster.pid)" >&2
    exit 2
fi

case "${1-}" in
    start)
        if [ ! -s "$PGDATA/PG_VERSION" ]; then
            mkdir -m 700 -p "$PGDATA"
            [ -s "$password" ] || (umask 077 && head -c 18 /dev/urandom | base64 | tr '+/' '-_' >"$password")
            initdb --encoding=UTF8 --locale=C --username=erl --auth=scram-sha-256 --pwfile="$password" >/dev/null
            echo "host all all samenet scram-sha-256" >>"$PGDATA/pg_hba.conf"
            printf "listen_addresses = '*'\nmax_connections = 300\n" >>"$PGDATA/postgresql.conf"
            echo "unix_socket_directories = '/tmp'" >>"$PGDATA/postgresql.conf"
        fi
        hostname >"$PGDATA/host"
        # The port is named here, since an older folder has one in its postgresql.conf.
        pg_ctl status >/dev/null || pg_ctl -l "$PGDATA/log" -o "-p $PGPORT" -w start >/dev/null
        running=$(sed -n 4p "$PGDATA/postmaster.pid") # the port of one that ran already
        PGPORT=${running:-$PGPORT}
        PGPASSWORD=$(cat "$password")
        export PGPASSWORD
        if ! psql --host=localhost --username=erl --dbname=studies --command="" >/dev/null 2>&1; then
            createdb --host=localhost --username=erl studies
        fi
        echo "PostgreSQL runs on $(hostname), port $PGPORT. Its address:"
        echo "export STORAGE=\"postgresql+psycopg://erl:\$(cat ~/.erl-password)@$(hostname):$PGPORT/studies\""
        ;;
    stop)
        pg_ctl -w stop >/dev/null
        ;;
    *)
        echo "usage: postgresql.sh start|stop" >&2
        exit 2
        ;;
esac
