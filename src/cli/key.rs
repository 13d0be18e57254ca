//! `tidegate key create|list|revoke`: asks the running server of the data folder, or, when none runs, changes the folder itself.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use hyper::Method;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tidegate_pipeline::clock::now_us;
use tidegate_pipeline::fs::{Fs, RealFs, make_dir_durable};
use tidegate_pipeline::keys::{KeyRecord, Keys, Role};
use tidegate_pipeline::log::LogLock;
use tidegate_pipeline::registry::Registry;
use tidegate_pipeline::{Health, PipelineError, StreamLog};

use super::args::KeyCommand;
use super::http::Client;
use super::{Ending, UsageError};
use crate::config::{ClientConfig, Config, NodeRole};
use crate::serve::destinations::Destinations;
use crate::serve::keys_door::DATA_DIR;
use crate::serve::roles::NODE_LOCK;
use crate::serve::rows_held;
use crate::serve::store::open_store;

/// What is to be done, checked.
#[derive(Debug)]
enum Wish<'a> {
    Create { org: &'a str, role: Role, label: &'a str },
    List,
    Revoke { key_id: &'a str },
}

/// Runs the command.
///
/// # Errors
/// When the keys cannot be reached or changed.
pub async fn run(config: &Config, command: &KeyCommand, out: &mut (dyn Write + Send)) -> anyhow::Result<Ending> {
    let wish = wish(config, command)?;
    let answer = match running_server(&config.data_dir)? {
        Some(server) => match ask(&server, &wish).await {
            // A server that was killed leaves its file behind; then the folder is free.
            Err(error) if !error.is::<Refused>() => offline(config, &wish)
                .await
                .with_context(|| format!("the server of this folder does not answer ({error:#})"))?,
            other => other?,
        },
        None => offline(config, &wish).await?,
    };
    show(&wish, &answer, out)
}

fn wish<'a>(config: &'a Config, command: &'a KeyCommand) -> anyhow::Result<Wish<'a>> {
    Ok(match command {
        KeyCommand::Create(_) => {
            let missing = |what: &str| {
                anyhow!(UsageError(format!(
                    "{what} is missing; for example: tidegate key create --org acme --role ingest"
                )))
            };
            let org = config.key.org.as_deref().ok_or_else(|| missing("--org"))?;
            let role = config.key.role.as_deref().ok_or_else(|| missing("--role"))?;
            let role = role.parse().map_err(|error| anyhow!(UsageError(error)))?;
            Wish::Create { org, role, label: &config.key.label }
        }
        KeyCommand::List(_) => Wish::List,
        KeyCommand::Revoke(args) => Wish::Revoke { key_id: &args.key_id },
    })
}

/// How to reach the server that says it runs on this folder.
pub(in crate::cli) fn running_server(data_dir: &Path) -> anyhow::Result<Option<ClientConfig>> {
    let path = data_dir.join("server.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot read {} (run this as the server's user)", path.display()));
        }
    };
    let file: Value = serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let (Some(url), Some(token)) = (file["url"].as_str(), file["token"].as_str()) else { return Ok(None) };
    Ok(Some(ClientConfig { url: url.to_owned(), key: Some(token.to_owned()), ..ClientConfig::default() }))
}

/// The server answered, and the answer was no.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

async fn ask(server: &ClientConfig, wish: &Wish<'_>) -> anyhow::Result<Value> {
    let mut client = Client::new(server)?;
    let json_body = [(CONTENT_TYPE, "application/json")];
    let reply = match wish {
        Wish::Create { org, role, label } => {
            let body = json!({"org": org, "role": role.as_str(), "label": label}).to_string();
            client.fetch(Method::POST, "/v2/keys", &json_body, Bytes::from(body)).await?
        }
        Wish::List => client.fetch(Method::GET, "/v2/keys", &[], Bytes::new()).await?,
        Wish::Revoke { key_id } => {
            let path = format!("/v2/keys/{}", super::http::query_escape(key_id));
            client.fetch(Method::DELETE, &path, &[], Bytes::new()).await?
        }
    };
    if reply.status.is_success() { Ok(reply.json()) } else { Err(anyhow!(Refused(reply.refusal()))) }
}

/// Opens the folder as the server does, changes it, and closes it again.
async fn offline(config: &Config, wish: &Wish<'_>) -> anyhow::Result<Value> {
    let data = config.data_dir.as_path();
    // The keys of many machines are in a topic, of which a node has a copy only: what is changed there counts for nobody.
    if config.role != NodeRole::All || data.join(NODE_LOCK).is_dir() {
        bail!(
            "{} is the folder of one of many machines, whose keys are in Fluvio: nothing was changed. Start the node, or another \
             of any role, and run this with its folder again",
            data.display()
        );
    }
    if !matches!(wish, Wish::Create { .. }) && !data.join("log").is_dir() {
        bail!("there is nothing in {}: choose the server's folder with --data-dir", data.display());
    }
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    make_dir_durable(fs.as_ref(), data).with_context(|| format!("make the data folder {}", data.display()))?;
    let lock = LogLock::take(fs.clone(), &data.join("log")).map_err(|error| match error {
        PipelineError::Locked(_) => anyhow!(
            "a server is using {} but its server.json is missing or stale: ask it over HTTP (/v2/keys), or restart it",
            data.display()
        ),
        other => anyhow!(other).context(format!("open the log in {}", data.display())),
    })?;
    // As in the server: the log goes on after what others hold, should it have lost its end.
    let destinations = Destinations::open(&fs, data, config).await?;
    let opened = open_store(&fs, config, &Health::default()).await?;
    let (held, _) = rows_held(&fs, config, &opened.store, &destinations)?;
    let opened = lock.open(config.log_store.clone(), held);
    let (log, _) = opened.with_context(|| format!("open the log in {}", data.display()))?;
    let log = Arc::new(log);
    let stream: Arc<dyn StreamLog> = log.clone();
    let changes = log.clone();
    let registry = Registry::open(fs, &data.join("registry"), stream, config.registry.clone(), move |from| {
        changes.changes_from(from)
    });
    let registry = registry.context("open the registry")?;
    let answer = act(&Keys::new(registry.clone()), wish).await;
    registry.save().await.context("write the registry's snapshot")?;
    log.close();
    answer
}

async fn act(keys: &Keys, wish: &Wish<'_>) -> anyhow::Result<Value> {
    match wish {
        Wish::Create { org, role, label } => {
            let (secret, record) = keys.create(org, *role, label, DATA_DIR, now_us()).await?;
            let mut answer = as_json(&record);
            answer["key"] = json!(secret.expose());
            Ok(answer)
        }
        Wish::List => Ok(json!({"keys": keys.list(None).iter().map(as_json).collect::<Vec<_>>()})),
        Wish::Revoke { key_id } => match keys.revoke(key_id, None, DATA_DIR, now_us()).await? {
            Some(record) => Ok(as_json(&record)),
            None => bail!("there is no key {key_id:?}; `tidegate key list` shows them"),
        },
    }
}

/// A key as the server's `/v2/keys` shows it.
fn as_json(record: &KeyRecord) -> Value {
    json!({
        "id": record.key_id,
        "org": record.org_id,
        "role": record.role.as_str(),
        "label": record.label,
        "created": time(record.created_us),
        "revoked": record.revoked_us.map(time),
    })
}

fn time(time_us: i64) -> String {
    DateTime::from_timestamp_micros(time_us)
        .map(|time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
        .unwrap_or_default()
}

fn show(wish: &Wish<'_>, answer: &Value, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    match wish {
        Wish::Create { .. } => {
            // The key alone on standard output, so that a script can take it.
            writeln!(out, "{}", text(answer, "key"))?;
            let line = format!(
                "key {} of {} may {}; it is shown only this once",
                text(answer, "id"),
                text(answer, "org"),
                text(answer, "role")
            );
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        Wish::List => {
            writeln!(out, "{:12} {:20} {:7} {:20} {:20} label", "id", "org", "role", "created", "revoked")?;
            for key in answer["keys"].as_array().into_iter().flatten() {
                let [id, org, role, created, revoked] =
                    ["id", "org", "role", "created", "revoked"].map(|name| text(key, name));
                writeln!(
                    out,
                    "{id:12} {org:20} {role:7} {created:20} {revoked:20} {}",
                    super::style::clean(&text(key, "label"))
                )?;
            }
        }
        Wish::Revoke { .. } => writeln!(out, "revoked {} of {}", text(answer, "id"), text(answer, "org"))?,
    }
    Ok(Ending::Good)
}
