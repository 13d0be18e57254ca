//! Where bodies go: a log, or one of several by tenant.

use std::sync::Arc;

use tidegate_pipeline::{PipelineError, StreamLog};

/// The logs that bodies are appended to. A body has one tenant, and a tenant one log: so each log has bodies, groups and answers
/// of its own, and one that hangs or is full holds up its tenants only.
#[derive(Clone)]
pub struct Partitions {
    logs: Vec<Arc<dyn StreamLog>>,
    of: fn(&str, usize) -> usize,
}

impl Partitions {
    /// One log for all.
    pub fn one(log: Arc<dyn StreamLog>) -> Self {
        Self { logs: vec![log], of: |_, _| 0 }
    }

    /// Several, among which `of` tells the place of a tenant's, from the tenant and how many there are.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] without any.
    pub fn by_tenant(logs: Vec<Arc<dyn StreamLog>>, of: fn(&str, usize) -> usize) -> Result<Self, PipelineError> {
        if logs.is_empty() {
            return Err(PipelineError::Invalid("a log needs a partition".to_owned()));
        }
        Ok(Self { logs, of })
    }

    /// How many there are, at least one.
    pub(super) fn count(&self) -> usize {
        self.logs.len()
    }

    /// The place of a tenant's.
    pub(super) fn of(&self, org_id: &str) -> usize {
        (self.of)(org_id, self.logs.len()).min(self.logs.len() - 1)
    }

    /// One of them.
    pub(super) fn log(&self, partition: usize) -> &Arc<dyn StreamLog> {
        &self.logs[partition]
    }
}

impl std::fmt::Debug for Partitions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partitions").field("logs", &self.logs.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tidegate_pipeline::log::MemoryLog;

    use super::*;

    #[test]
    fn a_tenant_has_a_log_whatever_the_rule_says() {
        let logs = || (0..3).map(|_| Arc::new(MemoryLog::new(1, 1)) as Arc<dyn StreamLog>).collect::<Vec<_>>();
        let partitions = Partitions::by_tenant(logs(), |org, _| org.len()).expect("three logs");
        for (org, place) in [("", 0), ("a", 1), ("ab", 2), ("abc", 2), ("abcdef", 2)] {
            assert_eq!(partitions.of(org), place, "{org}");
            assert!(Arc::ptr_eq(partitions.log(partitions.of(org)), &partitions.logs[place]));
        }
        assert_eq!((partitions.count(), Partitions::one(logs().remove(0)).of("abc")), (3, 0));
        assert!(Partitions::by_tenant(Vec::new(), |_, _| 0).is_err());
    }
}
