"""The tables of the SQLite ledger, and what they are asked; only numbers and constants come into its texts.

What belongs together happens in triggers, so that each thing asked of the ledger is a single statement: it runs to its
end inside SQLite, and the lock on the file is never held while Python's threads take turns. Each row that comes also
takes away up to two that are too old: the tables stay bounded without a clean-up that anybody would have to wait for.
"""

# ruff: noqa: S608
import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from taskpilot_instrument.sinks._ledger_records import (
    KEEP_PERIOD_S,
    KEEP_RUN_S,
    KEEP_S,
    KEEP_SETTLED_S,
    MOST_PICO,
    TOTAL,
)

VERSION: Final = 2


def _pruned(table: str, oldest: str, too_old: str) -> str:
    """Return the trigger that takes up to two of the oldest rows away where they are too old."""
    return f"""
CREATE TRIGGER {table}_pruned AFTER INSERT ON {table} BEGIN
    DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} ORDER BY {oldest} LIMIT 2) AND {too_old};
END;
"""


_SCHEMA: Final = f"""
CREATE TABLE spent (account TEXT NOT NULL, period TEXT NOT NULL, pico INTEGER NOT NULL, at_s REAL NOT NULL,
    PRIMARY KEY (account, period));
CREATE INDEX spent_by_age ON spent (period = '{TOTAL}', at_s);
{_pruned("spent", f"period = '{TOTAL}', at_s", f"at_s < new.at_s - {KEEP_PERIOD_S} AND period <> '{TOTAL}'")}

CREATE TABLE held (reservation TEXT NOT NULL, account TEXT NOT NULL, period TEXT NOT NULL, pico INTEGER NOT NULL,
    until_s REAL NOT NULL, at_s REAL NOT NULL);
CREATE INDEX held_by_account ON held (account, period, until_s, pico);
CREATE INDEX held_by_reservation ON held (reservation);
{_pruned("held", "rowid", "until_s <= new.at_s")}

CREATE TABLE settled (reservation TEXT NOT NULL, account TEXT, period TEXT, pico INTEGER, at_s REAL NOT NULL);
CREATE INDEX settled_by_reservation ON settled (reservation);
CREATE TRIGGER settling AFTER INSERT ON settled BEGIN
    DELETE FROM held WHERE reservation = new.reservation;
    INSERT INTO spent SELECT new.account, new.period, new.pico, new.at_s WHERE new.account IS NOT NULL
        ON CONFLICT (account, period) DO UPDATE SET pico = MIN(pico + excluded.pico, {MOST_PICO});
END;
{_pruned("settled", "rowid", f"at_s < new.at_s - {KEEP_SETTLED_S}")}

CREATE TABLE votes (id TEXT PRIMARY KEY NOT NULL, at_s REAL NOT NULL, vote TEXT NOT NULL);
CREATE INDEX votes_by_age ON votes (at_s, id);
{_pruned("votes", "at_s", f"at_s < new.at_s - {KEEP_S}")}

CREATE TABLE runs (request_id TEXT NOT NULL, trace_id TEXT, at_s REAL NOT NULL, run TEXT NOT NULL);
CREATE INDEX runs_by_request ON runs (request_id);
CREATE INDEX runs_by_trace ON runs (trace_id);
{_pruned("runs", "rowid", f"at_s < new.at_s - {KEEP_RUN_S}")}

CREATE TABLE rollups (hour INTEGER NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, figure INTEGER NOT NULL,
    PRIMARY KEY (hour, key, name));
{_pruned("rollups", "hour", f"hour < new.hour - {KEEP_S}")}
"""

_SPENT: Final = "COALESCE((SELECT pico FROM spent WHERE account = {0} AND period = {1}), 0)"
_HELD: Final = "COALESCE((SELECT SUM(pico) FROM held WHERE account = {0} AND period = {1} AND until_s > {2}), 0)"
STANDING: Final = f"SELECT {_SPENT.format('?1', '?2')}, {_HELD.format('?1', '?2', '?3')}"
#: Replace a vote unless it is another one by now than the one that was seen.
VOTING: Final = (
    "INSERT INTO votes (id, at_s, vote) VALUES (?1, ?2, ?3) "
    "ON CONFLICT (id) DO UPDATE SET at_s = excluded.at_s, vote = excluded.vote WHERE vote IS ?4"
)
#: Note that a batch of roll-ups was added; nothing is charged for it.
ADDED: Final = "INSERT INTO settled (reservation, at_s) VALUES (?1, ?2)"
#: By the one id where there is one, else by the other.
RUN: Final = "SELECT run FROM runs WHERE request_id = ?1 OR (?1 IS NULL AND trace_id = ?2) ORDER BY rowid DESC LIMIT 1"


def schema() -> Iterator[str]:
    """Return the statements that make the tables; a trigger has semicolons of its own."""
    statement = ""
    for part in _SCHEMA.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def values(rows: int, columns: int, first: int = 1) -> str:
    """Return ``VALUES`` of so many rows, with numbered places from the first on."""
    starts = range(first, first + rows * columns, columns)
    return "VALUES " + ", ".join(
        "(" + ", ".join(f"?{place}" for place in range(start, start + columns)) + ")" for start in starts
    )


@lru_cache(64)
def reserving(claims: int) -> str:
    """Return the statement that holds so many claims where none of them passes its limit."""
    return (
        f"INSERT INTO held WITH claims (account, period, pico, most) AS ({values(claims, 4, first=4)}) "
        "SELECT ?1, account, period, pico, ?2, ?3 FROM claims WHERE NOT EXISTS (SELECT 1 FROM claims AS c WHERE "
        f"c.pico + {_SPENT.format('c.account', 'c.period')} + {_HELD.format('c.account', 'c.period', '?3')} > c.most)"
    )


@lru_cache(64)
def settling(charges: int) -> str:
    """Return the statement that settles so many charges unless they are settled already; triggers do the rest."""
    return (
        f"INSERT INTO settled WITH charges (account, period, pico) AS ({values(charges, 3, first=3)}) "
        "SELECT ?1, account, period, pico, ?2 FROM charges "
        "WHERE NOT EXISTS (SELECT 1 FROM settled WHERE reservation = ?1)"
    )


@lru_cache(64)
def adding(figures: int) -> str:
    """Return the statement that adds so many figures to their hours unless their batch was added already."""
    return (
        f"INSERT INTO rollups (hour, key, name, figure) SELECT * FROM ({values(figures, 4, first=2)}) "
        "WHERE NOT EXISTS (SELECT 1 FROM settled WHERE reservation = ?1) "
        "ON CONFLICT (hour, key, name) DO UPDATE SET figure = figure + excluded.figure"
    )
