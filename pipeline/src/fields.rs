//! Which own fields each tenant has, with the joined type of each: what the SQL catalog of a tenant shows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxBuildHasher;
use tidegate_events::{Dataset, FieldType};

use crate::error::PipelineError;

/// Pairs of (schema, tenant) whose fields are remembered as seen; past it all are looked at again.
const SEEN_MAX: usize = 65_536;

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

impl FieldCatalog {
    /// Adds the own fields that have a value in `rows`, for the tenants whose rows they are; says whether that changed
    /// anything. For many batches of the same layouts use a [`FieldObserver`].
    pub fn observe(&mut self, dataset: Dataset, rows: &RecordBatch) -> bool {
        let own = own_columns(dataset, &rows.schema());
        let mut changed = false;
        for run in TenantRows::of(rows) {
            let org = Arc::from(run.org_id);
            for column in &own {
                if run.has_value(rows.column(column.at)) {
                    changed |= self.add(&org, dataset, &column.name, column.kind);
                }
            }
        }
        changed
    }

    /// The catalog as bytes for a file, little-endian: count of (tenant, dataset) pairs, then each as tenant, dataset code,
    /// count of fields, then each as name, type code. Texts are a u32 length and UTF-8. No checksum: the file has one.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let count = |bytes: &mut Vec<u8>, count: usize| bytes.extend_from_slice(&(count as u32).to_le_bytes());
        count(&mut bytes, self.tenants.len());
        for ((org, dataset), fields) in &self.tenants {
            count(&mut bytes, org.len());
            bytes.extend_from_slice(org.as_bytes());
            bytes.push(*dataset as u8);
            count(&mut bytes, fields.len());
            for (name, kind) in fields.iter() {
                count(&mut bytes, name.len());
                bytes.extend_from_slice(name.as_bytes());
                bytes.push(kind.code());
            }
        }
        bytes
    }

    /// The catalog that [`encode`](Self::encode) gave.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] when the bytes are no catalog.
    pub fn decode(bytes: &[u8]) -> Result<Self, PipelineError> {
        let mut rest = bytes;
        let catalog = decode(&mut rest).filter(|_| rest.is_empty());
        catalog.ok_or_else(|| PipelineError::Invalid("the bytes are not a field catalog".to_owned()))
    }
}

fn decode(rest: &mut &[u8]) -> Option<FieldCatalog> {
    let mut catalog = FieldCatalog::default();
    for _ in 0..take_count(rest)? {
        let org = take_text(rest)?;
        let dataset = Dataset::from_code(take_byte(rest)?)?;
        let mut fields = TenantFields::new();
        for _ in 0..take_count(rest)? {
            let name = take_text(rest)?;
            fields.insert(name, FieldType::from_code(take_byte(rest)?)?);
        }
        catalog.tenants.insert((org, dataset), Arc::new(fields));
    }
    Some(catalog)
}

fn take_byte(rest: &mut &[u8]) -> Option<u8> {
    let (byte, after) = rest.split_first()?;
    *rest = after;
    Some(*byte)
}

fn take_count(rest: &mut &[u8]) -> Option<usize> {
    let (count, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*count) as usize)
}

fn take_text(rest: &mut &[u8]) -> Option<Arc<str>> {
    let length = take_count(rest)?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    std::str::from_utf8(text).ok().map(Arc::from)
}

/// An own field among the columns of a schema.
#[derive(Debug, Clone)]
struct OwnColumn {
    at: usize,
    name: Arc<str>,
    kind: FieldType,
}

fn own_columns(dataset: Dataset, schema: &SchemaRef) -> Vec<OwnColumn> {
    let core = dataset.core_schema();
    let own = schema.fields().iter().enumerate().filter(|(_, field)| core.field_with_name(field.name()).is_err());
    own.filter_map(|(at, field)| {
        let kind = FieldType::from_data_type(field.data_type())?;
        Some(OwnColumn { at, name: field.name().as_str().into(), kind })
    })
    .collect()
}

/// The rows of one tenant in a batch, as ranges.
struct TenantRows<'a> {
    org_id: &'a str,
    /// Empty stands for all rows.
    ranges: Vec<std::ops::Range<usize>>,
}

impl<'a> TenantRows<'a> {
    fn of(rows: &'a RecordBatch) -> Vec<Self> {
        let Some(orgs) = rows.column_by_name(Dataset::ORG_ID).and_then(|column| column.as_string_opt::<i32>()) else {
            return Vec::new();
        };
        let count = orgs.len();
        let mut tenants: Vec<Self> = Vec::new();
        let mut by_org: HashMap<&str, usize, FxBuildHasher> = HashMap::default();
        let mut start = 0;
        while start < count {
            let org = value(orgs, start);
            let end = (start + 1..count).find(|row| value(orgs, *row) != org).unwrap_or(count);
            if start == 0 && end == count {
                return vec![Self { org_id: org, ranges: Vec::new() }];
            }
            let at = *by_org.entry(org).or_insert_with(|| {
                tenants.push(Self { org_id: org, ranges: Vec::new() });
                tenants.len() - 1
            });
            tenants[at].ranges.push(start..end);
            start = end;
        }
        tenants
    }

    fn has_value(&self, column: &dyn Array) -> bool {
        let nulls = column.null_count();
        if nulls == 0 || nulls == column.len() || self.ranges.is_empty() {
            return nulls < column.len();
        }
        self.ranges.iter().any(|range| range.clone().any(|row| column.is_valid(row)))
    }
}

fn value(orgs: &StringArray, row: usize) -> &str {
    if orgs.is_null(row) { "" } else { orgs.value(row) }
}

/// What is known of one tenant's rows of one schema: which own columns have had a value.
#[derive(Debug)]
pub(crate) struct Seen {
    org_id: Arc<str>,
    dataset: Dataset,
    own: Arc<[OwnColumn]>,
    known: Box<[AtomicU64]>,
}

impl Seen {
    fn knows(&self, nth: usize) -> bool {
        self.known[nth / 64].load(Ordering::Relaxed) & (1 << (nth % 64)) != 0
    }

    fn learn(&self, nth: usize) {
        self.known[nth / 64].fetch_or(1 << (nth % 64), Ordering::Relaxed);
    }

    /// Adds what is known to a catalog.
    pub(crate) fn add_to(&self, catalog: &mut FieldCatalog) {
        for (nth, column) in self.own.iter().enumerate() {
            if self.knows(nth) {
                catalog.add(&self.org_id, self.dataset, &column.name, column.kind);
            }
        }
    }
}

#[derive(Debug, Default)]
struct SeenBySchema {
    own: Arc<[OwnColumn]>,
    tenants: HashMap<Arc<str>, Arc<Seen>, FxBuildHasher>,
}

/// A growing [`FieldCatalog`] that many threads feed. A batch of a known layout and tenant whose columns have all had a
/// value before costs one look-up.
#[derive(Debug, Default)]
pub struct FieldObserver {
    seen: RwLock<HashMap<(Dataset, u64), SeenBySchema, FxBuildHasher>>,
    catalog: Mutex<Arc<FieldCatalog>>,
}

impl FieldObserver {
    /// An observer that starts from what a log holds.
    pub fn new(catalog: FieldCatalog) -> Self {
        Self { seen: RwLock::default(), catalog: Mutex::new(Arc::new(catalog)) }
    }

    /// The catalog now.
    pub fn catalog(&self) -> Arc<FieldCatalog> {
        self.catalog.lock().clone()
    }

    /// Takes in the fields of `rows`, whose schema has the id `schema_id`; returns what is known of each tenant in it.
    pub(crate) fn observe(&self, dataset: Dataset, schema_id: u64, rows: &RecordBatch) -> Vec<Arc<Seen>> {
        TenantRows::of(rows).iter().map(|run| self.observe_tenant(dataset, schema_id, rows, run)).collect()
    }

    fn observe_tenant(&self, dataset: Dataset, schema_id: u64, rows: &RecordBatch, run: &TenantRows<'_>) -> Arc<Seen> {
        let known = {
            let seen = self.seen.read();
            seen.get(&(dataset, schema_id)).and_then(|schema| schema.tenants.get(run.org_id)).cloned()
        };
        let seen = known.unwrap_or_else(|| self.meet(dataset, schema_id, rows, run.org_id));
        let fresh = |(nth, column): &(usize, &OwnColumn)| !seen.knows(*nth) && run.has_value(rows.column(column.at));
        let fresh: Vec<_> = seen.own.iter().enumerate().filter(fresh).collect();
        if !fresh.is_empty() {
            let mut catalog = self.catalog.lock();
            let catalog = Arc::make_mut(&mut catalog);
            for (nth, column) in fresh {
                catalog.add(&seen.org_id, dataset, &column.name, column.kind);
                seen.learn(nth);
            }
        }
        seen
    }

    fn meet(&self, dataset: Dataset, schema_id: u64, rows: &RecordBatch, org_id: &str) -> Arc<Seen> {
        let mut seen = self.seen.write();
        if seen.values().map(|schema| schema.tenants.len()).sum::<usize>() >= SEEN_MAX {
            seen.clear();
        }
        let schema = seen.entry((dataset, schema_id)).or_insert_with(|| SeenBySchema {
            own: own_columns(dataset, &rows.schema()).into(),
            tenants: HashMap::default(),
        });
        if let Some(known) = schema.tenants.get(org_id) {
            return known.clone();
        }
        let org_id: Arc<str> = org_id.into();
        let known = (0..schema.own.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let met = Arc::new(Seen { org_id: org_id.clone(), dataset, own: schema.own.clone(), known });
        schema.tenants.insert(org_id, met.clone());
        met
    }
}
