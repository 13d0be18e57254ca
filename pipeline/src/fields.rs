//! Which own fields each tenant has, with the joined type of each: what the SQL catalog of a tenant shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_events::{Dataset, FieldType};

/// The own fields of one tenant in one dataset, by name.
pub type TenantFields = BTreeMap<Arc<str>, FieldType>;

/// Own fields by tenant and dataset. Grows by [`observe`](Self::observe) and [`merge`](Self::merge); never shrinks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldCatalog {
    tenants: BTreeMap<(Arc<str>, Dataset), Arc<TenantFields>>,
}

impl FieldCatalog {
    /// The fields of `org_id` in `dataset`; empty when it has none.
    pub fn fields(&self, org_id: &str, dataset: Dataset) -> Arc<TenantFields> {
        self.tenants.get(&(Arc::from(org_id), dataset)).cloned().unwrap_or_default()
    }

    /// Every (tenant, dataset) with its fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Dataset, &TenantFields)> {
        self.tenants.iter().map(|((org, dataset), fields)| (&**org, *dataset, &**fields))
    }

    /// Adds one field of one tenant; says whether that changed anything.
    pub fn add(&mut self, org_id: &Arc<str>, dataset: Dataset, name: &Arc<str>, kind: FieldType) -> bool {
        let fields = self.tenants.entry((org_id.clone(), dataset)).or_default();
        match fields.get(name) {
            Some(known) if known.join(kind) == *known => false,
            known => {
                let joined = known.map_or(kind, |known| known.join(kind));
                Arc::make_mut(fields).insert(name.clone(), joined);
                true
            }
        }
    }

    /// Adds all that `other` has.
    pub fn merge(&mut self, other: &FieldCatalog) {
        for ((org, dataset), fields) in &other.tenants {
            for (name, kind) in fields.iter() {
                self.add(org, *dataset, name, *kind);
            }
        }
    }
}
