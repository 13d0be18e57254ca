//! The own fields that the tables hold, by tenant: the table `fields`. The SQL catalog of a tenant is made from it.
//!
//! A field stands there before the first row that has it. Its type is the join of all types that it came with, so that a type
//! only ever widens, and `(count(*), sum(type))` tells whether anything is new.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_events::{Dataset, FieldType};
use tidegate_pipeline::FieldCatalog;
use tokio_postgres::types::Type;
use tokio_postgres::{Error, GenericClient};

use super::ddl::qualified;

/// The name of the table.
const TABLE: &str = "fields";

/// The statements that make the table. Names may be longer than an index can hold.
pub(super) fn table(schema: &str) -> Vec<String> {
    let table = qualified(schema, TABLE);
    vec![
        format!(
            "CREATE TABLE IF NOT EXISTS {table} (dataset text NOT NULL, org_id text NOT NULL, name text NOT NULL, type int2 NOT NULL)"
        ),
        format!("CREATE UNIQUE INDEX IF NOT EXISTS fields_key ON {table} (org_id, dataset, md5(name))"),
    ]
}

/// An own field of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) dataset: Dataset,
    pub(super) org_id: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) kind: FieldType,
}

/// What of `seen` is not in `known` yet, in the order in which all writers lock the rows of the table.
pub(super) fn fresh(known: &FieldCatalog, seen: &FieldCatalog) -> Vec<Field> {
    let mut fresh = Vec::new();
    for (org_id, dataset, fields) in seen.iter() {
        let before = known.fields(org_id, dataset);
        for (name, kind) in fields {
            let kind = before.get(name).map_or(*kind, |before| before.join(*kind));
            if before.get(name) != Some(&kind) {
                fresh.push(Field { dataset, org_id: org_id.into(), name: name.clone(), kind });
            }
        }
    }
    fresh
}

/// Puts fields into the table, each with the join of its type there and here. To be committed before the first rows that
/// have them.
pub(super) async fn store(client: &impl GenericClient, schema: &str, fields: &[Field]) -> Result<(), Error> {
    if fields.is_empty() {
        return Ok(());
    }
    // Codes of types: bits 0 and 1 are boolean, integer, float, text; bit 2 is a list.
    let joined = "((f.type | excluded.type) & 4) | CASE WHEN (f.type & 3) = (excluded.type & 3) THEN f.type & 3 \
         WHEN (f.type & 3) IN (1, 2) AND (excluded.type & 3) IN (1, 2) THEN 2 ELSE 3 END";
    // One statement may not meet a row of the table twice, and two names may be one there.
    let sql = format!(
        "INSERT INTO {} AS f (dataset, org_id, name, type) SELECT DISTINCT ON (s.org_id, s.dataset, md5(s.name)) s.* \
         FROM unnest($1::text[], $2::text[], $3::text[], $4::int2[]) AS s (dataset, org_id, name, type) \
         ORDER BY s.org_id, s.dataset, md5(s.name) \
         ON CONFLICT (org_id, dataset, md5(name)) DO UPDATE SET type = {joined} WHERE f.type <> ({joined})",
        qualified(schema, TABLE)
    );
    // As the keys in `attributes`: the database has no NUL.
    let clean = |text: &str| text.replace('\0', "\u{fffd}");
    let mut joined_here: BTreeMap<(String, &str, String), FieldType> = BTreeMap::new();
    for field in fields {
        let key = (clean(&field.org_id), field.dataset.table_name(), clean(&field.name));
        let kind = joined_here.get(&key).map_or(field.kind, |before| before.join(field.kind));
        joined_here.insert(key, kind);
    }
    let datasets: Vec<&str> = joined_here.keys().map(|(_, dataset, _)| *dataset).collect();
    let orgs: Vec<&str> = joined_here.keys().map(|(org, ..)| org.as_str()).collect();
    let names: Vec<&str> = joined_here.keys().map(|(.., name)| name.as_str()).collect();
    let kinds: Vec<i16> = joined_here.values().map(|kind| i16::from(kind.code())).collect();
    let types = [Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::INT2_ARRAY];
    let statement = client.prepare_typed(&sql, &types).await?;
    client.execute(&statement, &[&datasets, &orgs, &names, &kinds]).await.map(drop)
}

/// Whether the table has changed since it gave this.
pub(super) type Mark = (i64, i64);

/// The mark of the table now.
pub(super) async fn mark(client: &impl GenericClient, schema: &str) -> Result<Mark, Error> {
    let sql = format!("SELECT count(*), coalesce(sum(type), 0)::int8 FROM {}", qualified(schema, TABLE));
    let row = client.query_one(&sql, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// All fields.
pub(super) async fn read(client: &impl GenericClient, schema: &str) -> Result<FieldCatalog, Error> {
    let sql = format!("SELECT dataset, org_id, name, type FROM {}", qualified(schema, TABLE));
    let mut catalog = FieldCatalog::default();
    for row in client.query(&sql, &[]).await? {
        let (dataset, kind): (&str, i16) = (row.try_get(0)?, row.try_get(3)?);
        let kind = u8::try_from(kind).ok().and_then(FieldType::from_code);
        if let (Some(dataset), Some(kind)) = (Dataset::from_table_name(dataset), kind) {
            let (org, name): (&str, &str) = (row.try_get(1)?, row.try_get(2)?);
            catalog.add(&org.into(), dataset, &name.into(), kind);
        }
    }
    Ok(catalog)
}
