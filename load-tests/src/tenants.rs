//! Many tenants: a key for each, made over the API before the load, and the count of their rows after it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::http::Connection;

/// Connections over which keys are made.
const MAKERS: usize = 64;
/// Tenants whose rows are counted by SQL after a run.
const COUNTED: usize = 100;

/// A tenant.
#[derive(Debug)]
pub struct Tenant {
    /// The header with its key.
    pub authorization: HeaderValue,
    /// Its events that the server says are stored.
    pub accepted: AtomicU64,
}

/// Makes so many tenants with a key each; none when one tenant is enough, which needs no key. `operator` is the header of whoever
/// may read the server's folder.
///
/// # Errors
/// When a key is not made.
pub async fn make(address: SocketAddr, operator: &HeaderValue, count: usize) -> anyhow::Result<Vec<Tenant>> {
    if count <= 1 {
        return Ok(Vec::new());
    }
    let next = Arc::new(AtomicU64::new(0));
    let mut makers = JoinSet::new();
    for _ in 0..MAKERS.min(count) {
        let (next, operator) = (next.clone(), operator.clone());
        makers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            connection.authorize(Some(operator));
            let mut made = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count as u64 {
                    return anyhow::Ok(made);
                }
                made.push(key(&mut connection, number).await?);
            }
        });
    }
    let mut tenants = Vec::with_capacity(count);
    while let Some(made) = makers.join_next().await {
        tenants.extend(made.context("the task that makes keys")??);
    }
    Ok(tenants)
}

async fn key(connection: &mut Connection, number: u64) -> anyhow::Result<Tenant> {
    let wanted = json!({"org": format!("tenant-{number:06}"), "role": "admin"}).to_string();
    let reply = connection.send(Method::POST, "/v2/keys", HeaderMap::new(), Bytes::from(wanted)).await?;
    let text = String::from_utf8_lossy(&reply.body);
    ensure!(reply.status == StatusCode::CREATED, "making a key was answered with {}: {text}", reply.status);
    let made: Value = serde_json::from_slice(&reply.body).context("a key as JSON")?;
    let key = made["key"].as_str().with_context(|| format!("no key in {text}"))?;
    Ok(Tenant { authorization: format!("Bearer {key}").parse()?, accepted: AtomicU64::new(0) })
}

/// Of some tenants, spread over all: the events that were acknowledged less the rows that SQL counts.
///
/// # Errors
/// When a count fails.
pub async fn lost(address: SocketAddr, tenants: &[Tenant]) -> anyhow::Result<i64> {
    let mut connection = Connection::open(address).await?;
    let mut lost = 0;
    for tenant in tenants.iter().step_by((tenants.len() / COUNTED).max(1)) {
        connection.authorize(Some(tenant.authorization.clone()));
        let rows = connection.count("security_events").await?;
        let missing = i64::try_from(tenant.accepted.load(Ordering::Relaxed))? - i64::try_from(rows)?;
        // Rows too many of one tenant must not make up for rows that another has lost.
        lost += missing.abs();
    }
    Ok(lost)
}
