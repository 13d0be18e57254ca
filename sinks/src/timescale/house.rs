//! What has to be done now and then: partitions ahead of time, old ones dropped, policies, views refreshed. What the extension
//! does by itself is left to it.
//!
//! A change of a table waits for those who use it, and everybody who comes later waits behind it. So it waits for a second, and is
//! put off to the next time then.

use std::sync::atomic::Ordering;

use tidegate_events::Dataset;
use tidegate_pipeline::clock::now_us;

use super::chunks::{self, CHANGE_MS_MAX};
use super::ddl::{Layout, chunk_hours, qualified};
use super::leases::Asked;
use super::policies::{self, Setting};
use super::schema::{ADVISORY_LOCK, Found, rows, run};
use super::store::{Ready, TimescaleStore};
use crate::error::SinksError;

/// Partitions that are made ahead of time.
const AHEAD: i64 = 3;
/// Days in microseconds.
const DAY_US: i64 = 86_400_000_000;

/// The first thing that was put off, and why.
#[derive(Default)]
struct PutOff(Option<String>);

impl PutOff {
    /// Takes note of what could not be done because somebody uses the table.
    fn unless_done(&mut self, done: Result<(), SinksError>) -> Result<(), SinksError> {
        match done {
            Err(SinksError::Locked { reason }) => {
                self.0.get_or_insert(reason);
                Ok(())
            }
            done => done,
        }
    }
}

impl TimescaleStore {
    /// Does what has to be done now and then; says what was put off, and why, because somebody uses the table or will not have it:
    /// that is for the next time.
    ///
    /// # Errors
    /// [`SinksError::Database`], with what to do; it is tried again the next time.
    pub async fn keep_house(&self) -> Result<Option<String>, SinksError> {
        let ready = self.ready().await?;
        // It has bounds of its own, and no writer is to wait for what it may leave undone: it does not go back to the others.
        let client = Asked::of(self.connection().await?);
        let bounds = format!(
            "SET lock_timeout = {CHANGE_MS_MAX}; SET statement_timeout = {}",
            // The server ends it before this program leaves it alone.
            (self.config.statement_ms_max / 10 * 9).max(1)
        );
        run(&client, &self.config, "begin the housekeeping", &[bounds]).await?;
        let mut put_off = PutOff::default();
        for dataset in Dataset::ALL {
            put_off.unless_done(self.make_ahead(&client, &ready, dataset).await)?;
            put_off.unless_done(self.drop_old(&client, &ready, dataset).await)?;
        }
        if !self.policies_set.load(Ordering::Relaxed) {
            self.set_policies(&client, &ready.found, &mut put_off).await?;
        }
        if self.config.aggregates && !has_policies(&ready.found) {
            self.refresh(&client).await?;
        }
        Ok(put_off.0)
    }

    async fn make_ahead(&self, client: &Asked, ready: &Ready, dataset: Dataset) -> Result<(), SinksError> {
        if ready.found.layout == Layout::Partitions {
            let (now, width) = (now_us(), i64::from(chunk_hours(&self.config, dataset)) * 3_600_000_000);
            let missing = ready.chunks.lock().ahead(&self.config, dataset, (0..=AHEAD).map(|at| now + at * width));
            for stretch in missing {
                chunks::make(client, &self.config, &ready.chunks, dataset, stretch).await?;
            }
        }
        Ok(())
    }

    async fn drop_old(&self, client: &Asked, ready: &Ready, dataset: Dataset) -> Result<(), SinksError> {
        let Some(days) = self.config.retention.of(dataset).filter(|days| *days > 0) else { return Ok(()) };
        let before = now_us().saturating_sub(i64::from(days) * DAY_US);
        let (table, by_policy) = ((dataset, ready.found.layout), has_policies(&ready.found));
        let dropped = chunks::drop_before(client, &self.config, table, before, by_policy).await?;
        if dropped > 0 {
            tracing::info!(table = dataset.table_name(), dropped, "old partitions were dropped");
            ready.chunks.lock().forget_before(dataset, before);
        }
        Ok(())
    }

    /// Sets the policies, once for a process: the configuration may have changed since the last one. One that cannot be set harms
    /// nothing else.
    async fn set_policies(&self, client: &Asked, found: &Found, put_off: &mut PutOff) -> Result<(), SinksError> {
        let mut all = true;
        for setting in policies::settings(&self.config, found.layout, found.extension) {
            if let Err(error) = self.set_policy(client, setting).await {
                // Fails too when it was the connection.
                run(client, &self.config, "leave a policy alone", &["ROLLBACK".to_owned()]).await?;
                put_off.0.get_or_insert(error.to_string());
                all = false;
            }
        }
        self.policies_set.store(all, Ordering::Relaxed);
        Ok(())
    }

    async fn set_policy(&self, client: &Asked, setting: Setting) -> Result<(), SinksError> {
        let (config, doing) = (&self.config, format!("set the policies of {}", setting.name));
        // Another server may be at it.
        let begin = format!("BEGIN; SELECT pg_advisory_xact_lock({ADVISORY_LOCK})");
        run(client, config, &doing, &[begin]).await?;
        let exists = format!("SELECT 1 WHERE to_regclass('{}') IS NOT NULL", qualified(&config.schema, setting.name));
        if rows(client, config, &doing, &exists).await?.is_empty() {
            // A view that was not made with the tables.
            return run(client, config, &doing, &["ROLLBACK".to_owned()]).await;
        }
        if let Some((question, compress)) = &setting.compress
            && rows(client, config, &doing, question).await?.is_empty()
        {
            run(client, config, &doing, std::slice::from_ref(compress)).await?;
        }
        run(client, config, &doing, &setting.policies).await?;
        run(client, config, &doing, &["COMMIT".to_owned()]).await
    }

    /// Refreshes the views, each whatever became of the others.
    async fn refresh(&self, client: &Asked) -> Result<(), SinksError> {
        let mut failure = None;
        for refresh in policies::refreshes(&self.config.schema) {
            match run(client, &self.config, "refresh the views", &[refresh]).await {
                Ok(()) => {}
                Err(SinksError::Locked { reason }) => tracing::debug!(reason, "another server refreshes the view"),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Whether the extension does by policies what is done here otherwise.
fn has_policies(found: &Found) -> bool {
    found.extension.is_some_and(|extension| extension.community) && found.layout == Layout::Hypertables
}
