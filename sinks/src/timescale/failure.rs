//! What the database said, as something to tell an operator, and whether trying again may help.

use std::error::Error as _;
use std::time::Duration;

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::certificates;
use crate::error::SinksError;

/// A statement, or a step of a COPY, that failed.
pub(super) fn failed(doing: &str, error: &Error) -> SinksError {
    let Some(said) = error.as_db_error() else {
        let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
        let of_tls = certificates::advice(&cause, "sslrootcert").or_else(|| {
            cause
                .contains("does not support TLS")
                .then(|| "switch ssl on in its postgresql.conf, or see sslmode".to_owned())
        });
        let advice = of_tls.unwrap_or_else(|| "is the database up and reachable?".to_owned());
        let reason = format!("{doing}: {error}{cause}; {advice}");
        return SinksError::Database { reason };
    };
    let code = said.code();
    let mut reason = format!("{doing}: {} (SQLSTATE {})", said.message(), code.code());
    for more in [said.detail(), said.where_()].into_iter().flatten() {
        reason.push_str("; ");
        reason.push_str(more);
    }
    if is_of_the_rows(code) {
        return SinksError::Refused { reason, row: None };
    }
    if let Some(advice) = advice(code) {
        reason.push_str("; ");
        reason.push_str(advice);
    }
    match *code == SqlState::LOCK_NOT_AVAILABLE {
        true => SinksError::Locked { reason },
        false => SinksError::Database { reason },
    }
}

/// A step that made no progress in time.
pub(super) fn late(doing: &str, after: Duration) -> SinksError {
    let reason = format!(
        "{doing}: no answer in {} ms: the database or the network hangs, or a lock is held there; the bound is statement_ms_max",
        after.as_millis()
    );
    SinksError::Database { reason }
}

/// No connection.
pub(super) fn unconnected(error: PoolError, connect: Duration) -> SinksError {
    let reason = match error {
        PoolError::Backend(error) => return failed("connect", &error),
        PoolError::Timeout(TimeoutType::Create | TimeoutType::Recycle) => format!(
            "connect: no answer in {} ms (connect_ms_max): the address or a firewall swallows the packets, or the server hangs",
            connect.as_millis()
        ),
        other => format!("connect: {other}"),
    };
    SinksError::Database { reason }
}

/// Whether the rows are the reason: a data exception (22), an integrity constraint (23), a value too large for a type (54),
/// or a trigger of the operator's own that raises (P0001). Other rows go on.
fn is_of_the_rows(code: &SqlState) -> bool {
    let class = code.code().get(..2).unwrap_or_default();
    matches!(class, "22" | "23") || [SqlState::PROGRAM_LIMIT_EXCEEDED, SqlState::RAISE_EXCEPTION].contains(code)
}

/// The row of a COPY, counted from 1, at which it failed: `COPY security_events, line 17, column attributes` in the context.
pub(super) fn row_of_copy(error: &Error) -> Option<usize> {
    let context = error.as_db_error()?.where_()?;
    context.lines().find_map(line_of_copy)
}

fn line_of_copy(context: &str) -> Option<usize> {
    let (_, after) = context.strip_prefix("COPY ")?.split_once(", line ")?;
    let digits = after.find(|letter: char| !letter.is_ascii_digit()).map_or(after, |end| &after[..end]);
    digits.parse().ok().filter(|line| *line > 0)
}

/// What to do about it.
fn advice(code: &SqlState) -> Option<&'static str> {
    const ADVICE: &[(&SqlState, &str)] = &[
        (&SqlState::DISK_FULL, "free space on the database's disk; it goes on by itself"),
        (&SqlState::OUT_OF_MEMORY, "the database is out of memory: give it more, or fewer connections"),
        (&SqlState::TOO_MANY_CONNECTIONS, "raise max_connections there or lower sinks.timescale.connections"),
        (&SqlState::INVALID_PASSWORD, "the user or the password is wrong: see url, password, password_file"),
        (&SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "pg_hba.conf of the database does not let this user in"),
        (&SqlState::INVALID_CATALOG_NAME, "the database in the url does not exist: create it"),
        (
            &SqlState::UNDEFINED_TABLE,
            "a table is gone: restore it, or make it again with its statements of `tidegate timescale ddl`",
        ),
        (&SqlState::UNDEFINED_COLUMN, "a column is gone or renamed: restore it as `tidegate timescale ddl` has it"),
        (&SqlState::DATATYPE_MISMATCH, "a column was changed: restore it as `tidegate timescale ddl` has it"),
        (&SqlState::INVALID_SCHEMA_NAME, "the schema is gone: restore it from a backup"),
        (
            &SqlState::INSUFFICIENT_PRIVILEGE,
            "grant the user the rights to write to the schema, and CREATE on the database for the first start",
        ),
        (
            &SqlState::READ_ONLY_SQL_TRANSACTION,
            "this server takes no writes (a standby?): name all hosts in the url, the one that takes writes is found",
        ),
        (
            &SqlState::LOCK_NOT_AVAILABLE,
            "another connection holds a lock: a long query or a dump (see pg_stat_activity), one that the database has not missed yet, \
             another server with a copy of this data folder, or a migration",
        ),
        (
            &SqlState::QUERY_CANCELED,
            "it took longer than it may (sinks.timescale.statement_ms_max), or somebody cancelled it there",
        ),
        (&SqlState::CANNOT_CONNECT_NOW, "the database is starting or stopping"),
        (&SqlState::ADMIN_SHUTDOWN, "the database was stopped"),
        (&SqlState::CRASH_SHUTDOWN, "the database has crashed and restarts"),
    ];
    ADVICE.iter().find(|(known, _)| *known == code).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_of_a_copy_is_found_in_its_context() {
        let cases = [
            ("COPY security_events, line 17", Some(17)),
            ("COPY security_events, line 3, column attributes", Some(3)),
            ("COPY odd, line name, line 4, column a", None),
            ("PL/pgSQL function refuse() line 2 at RAISE", None),
            ("COPY security_events", None),
            ("COPY security_events, line 0", None),
            ("COPY security_events, line 99999999999999999999999", None),
        ];
        for (context, line) in cases {
            assert_eq!(line_of_copy(context), line, "{context}");
        }
    }
}
