//! What one query sees: one snapshot of history, one range of each log after it, one tenant. All tables of the query share
//! it, so that joins and subqueries agree, and each event is in it exactly once.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tidegate_events::{Dataset, FieldType, REST_COLUMN};
use tidegate_pipeline::fields::TenantFields;
use tidegate_pipeline::keys::{DEFAULT_ORG, Principal, Role};
use tidegate_pipeline::{FieldCatalog, History, LogReader, Offset, Snapshot};

/// The tenant of changes that concern the whole installation.
const GLOBAL_ORG: &str = "*";

/// Whose rows a query may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    org_id: Arc<str>,
    admin: bool,
}

impl Scope {
    /// What the key of a request may see.
    pub fn of(principal: &Principal) -> Self {
        Self { org_id: principal.org_id.clone(), admin: principal.role == Role::Admin }
    }

    /// The rows of one tenant, without what only admins see: for the feed and the command line.
    pub fn tenant(org_id: impl Into<Arc<str>>) -> Self {
        Self { org_id: org_id.into(), admin: false }
    }

    /// The tenant.
    pub fn org_id(&self) -> &Arc<str> {
        &self.org_id
    }

    /// The values of `org_id` whose rows of `dataset` are visible. Global changes are shown to admins of the default
    /// tenant, who run the installation.
    pub(crate) fn orgs(&self, dataset: Dataset) -> Vec<Arc<str>> {
        let mut orgs = vec![self.org_id.clone()];
        if dataset == Dataset::Changes && self.admin && &*self.org_id == DEFAULT_ORG {
            orgs.push(GLOBAL_ORG.into());
        }
        orgs
    }
}

/// A log and the rows of it that are not in history.
#[derive(Clone)]
pub(crate) struct Tail {
    pub(crate) log: Arc<dyn LogReader>,
    pub(crate) rows: Range<Offset>,
}

/// Where views come from.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) log: Arc<dyn LogReader>,
    pub(crate) log_datasets: &'static [Dataset],
    pub(crate) output: Arc<dyn LogReader>,
    pub(crate) history: Arc<dyn History>,
    pub(crate) log_fields: Arc<dyn Fn() -> Arc<FieldCatalog> + Send + Sync>,
}

/// A consistent view. It keeps its files and its part of the logs alive.
pub(crate) struct View {
    pub(crate) scope: Scope,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) log: Tail,
    log_datasets: &'static [Dataset],
    pub(crate) output: Tail,
    log_fields: Arc<FieldCatalog>,
    pub(crate) history: Arc<dyn History>,
    /// Whether a store that several servers write to is asked for the rows of all.
    pub(crate) others: bool,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl View {
    /// The view now. The snapshot comes first: rows that move to history after it are still in the log, which is kept
    /// from the snapshot's cursor on. The fields come last: they know every row of the tail.
    pub(crate) fn take(sources: &Sources, scope: Scope) -> Self {
        let mut tries = 0;
        loop {
            let snapshot = sources.history.snapshot();
            let (log, output) = (sources.log.bounds(), sources.output.bounds());
            let whole = log.first <= snapshot.log_cursor && output.first <= snapshot.output_cursor;
            tries += 1;
            // A log that starts above the newest cursor lost rows to its disk bound; what is left is shown.
            if whole || tries == 3 {
                let tail = |log: &Arc<dyn LogReader>, cursor: Offset, first: Offset, next: Offset| {
                    let from = cursor.max(first);
                    Tail { log: log.clone(), rows: from..next.max(from) }
                };
                return Self {
                    log: tail(&sources.log, snapshot.log_cursor, log.first, log.next),
                    log_datasets: sources.log_datasets,
                    output: tail(&sources.output, snapshot.output_cursor, output.first, output.next),
                    log_fields: (sources.log_fields)(),
                    history: sources.history.clone(),
                    others: true,
                    scope,
                    snapshot,
                };
            }
        }
    }

    /// The same without rows of other installations: for what goes by offsets, which mean nothing beyond one's own logs.
    pub(crate) fn of_own_logs(self) -> Self {
        Self { others: false, ..self }
    }

    /// The tails that may hold rows of `dataset`.
    pub(crate) fn tails(&self, dataset: Dataset) -> Vec<Tail> {
        let log = self.log_datasets.contains(&dataset).then(|| self.log.clone());
        match dataset {
            Dataset::SecurityEvents | Dataset::CostEvents | Dataset::Changes => log.into_iter().collect(),
            Dataset::Alerts => vec![self.output.clone()],
            Dataset::DeadLetters => log.into_iter().chain([self.output.clone()]).collect(),
        }
    }

    /// The columns of the tenant's table: core columns, own fields by name, `_rest`.
    pub(crate) fn schema(&self, dataset: Dataset) -> SchemaRef {
        let core = dataset.core_schema();
        if !matches!(dataset, Dataset::SecurityEvents | Dataset::CostEvents) {
            return core;
        }
        let taken: HashSet<&str> = core.fields().iter().map(|field| field.name().as_str()).collect();
        let mut columns: Vec<_> = core.fields().iter().cloned().collect();
        let own = self.own_fields(dataset);
        let own = own.iter().filter(|(name, _)| !taken.contains(&***name) && &***name != REST_COLUMN);
        columns.extend(own.map(|(name, kind)| Arc::new(Field::new(&**name, kind.data_type(), true))));
        columns.push(Arc::new(Field::new(REST_COLUMN, DataType::Utf8, true)));
        Arc::new(Schema::new(columns))
    }

    fn own_fields(&self, dataset: Dataset) -> Arc<TenantFields> {
        let org = self.scope.org_id();
        let stored = self.snapshot.fields.fields(org, dataset);
        let fresh = self.log_fields.fields(org, dataset);
        if fresh.is_empty() || fresh == stored {
            return stored;
        }
        let mut joined = TenantFields::clone(&stored);
        for (name, kind) in fresh.iter() {
            let known = joined.get(name).copied();
            joined.insert(name.clone(), known.map_or(*kind, |known: FieldType| known.join(*kind)));
        }
        Arc::new(joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_changes_are_for_the_admins_of_the_default_tenant_only() {
        for (org_id, role, dataset, global) in [
            (DEFAULT_ORG, Role::Admin, Dataset::Changes, true),
            (DEFAULT_ORG, Role::Admin, Dataset::SecurityEvents, false),
            (DEFAULT_ORG, Role::Read, Dataset::Changes, false),
            (DEFAULT_ORG, Role::Ingest, Dataset::Changes, false),
            ("acme", Role::Admin, Dataset::Changes, false),
            ("acme", Role::Read, Dataset::Alerts, false),
        ] {
            let scope = Scope::of(&Principal { org_id: org_id.into(), role, key_id: "k".into() });
            let orgs: Vec<String> = scope.orgs(dataset).iter().map(|org| org.to_string()).collect();
            let wanted: Vec<&str> = if global { vec![org_id, GLOBAL_ORG] } else { vec![org_id] };
            assert_eq!(orgs, wanted, "{org_id} {role:?} {dataset:?}");
        }
        assert_eq!(Scope::tenant(DEFAULT_ORG).orgs(Dataset::Changes).len(), 1, "no key, no admin");
    }
}
