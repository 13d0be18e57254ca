//! Two tenants see nothing of each other: rows, columns, catalogs, plans, errors.

use http_body_util::{BodyExt, Full};
use hyper::Request;
use tidegate_pipeline::keys::Role;
use tidegate_query::{QueryError, Scope};

use super::fixture::{World, principal};
use super::twin::MODES;

/// Words that only globex's rows, fields and files hold.
const SECRETS: [&str; 6] = ["globex", "mallory", "hidden", "secret", "g1\"", "parquet"];

/// Everything that a statement tells, as text: the answer or the refusal.
pub async fn told(world: &World, org_id: &str, role: Role, sql: &str) -> String {
    let request = Request::post("/v2/sql").body(Full::new(bytes::Bytes::from(sql.to_owned()))).expect("a request");
    let response = world.query.handle_sql(request, &principal(org_id, role), "request-1").await;
    let status = response.status();
    let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    format!("{status} {}", String::from_utf8_lossy(&body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_another_tenant_is_told_by_any_statement() {
    let tables = ["security_events", "cost_events", "alerts", "changes", "dead_letters"];
    let mut statements: Vec<String> = Vec::new();
    for table in tables {
        for shape in [
            "SELECT * FROM {t}",
            "SELECT * FROM {t} WHERE org_id = 'glob' || 'ex'",
            "SELECT * FROM {t} WHERE org_id <> 'acme' OR 1 = 1",
            "SELECT count(*), min(org_id), max(org_id), max(event_id) FROM {t} WHERE org_id > 'b'",
            "SELECT * FROM {t} a LEFT JOIN {t} b ON a.org_id <> b.org_id",
            "SELECT * FROM public.{t} UNION ALL SELECT * FROM tidegate.public.{t}",
            "SELECT * FROM {t} WHERE event_id IN ('g' || '1', 'g' || '2', 'd2', 'same')",
            "SELECT * FROM {t} WHERE CAST(org_id AS INT) = 1",
            "SELECT * FROM {t} WHERE 1 / (CASE WHEN org_id = 'acme' THEN 1 ELSE 0 END) = 1",
            "SELECT * FROM {t} a JOIN {t} b ON 1 / (length(a.org_id) - 6) = length(b.org_id)",
            "SELECT nothing_like_it FROM {t}",
            "SELECT \"gl\" FROM {t}",
            "EXPLAIN SELECT * FROM {t}",
            "EXPLAIN VERBOSE SELECT * FROM {t} WHERE severity > 1",
            "EXPLAIN ANALYZE SELECT count(*) FROM {t}",
            "EXPLAIN ANALYZE VERBOSE SELECT * FROM {t} ORDER BY time LIMIT 1",
            "EXPLAIN FORMAT TREE SELECT * FROM {t}",
            "EXPLAIN FORMAT PGJSON SELECT * FROM {t}",
            "EXPLAIN FORMAT INDENT SELECT * FROM {t}",
            "DESCRIBE {t}",
            "SHOW COLUMNS FROM {t}",
            "SELECT arrow_typeof(org_id) FROM {t}",
            "SELECT 1 / (CASE WHEN org_id = 'acme' THEN 1 ELSE 0 END) FROM {t}",
        ] {
            statements.push(shape.replace("{t}", table));
        }
    }
    for of in ["tables", "views", "columns", "schemata", "routines", "parameters", "df_settings"] {
        statements.push(format!("SELECT * FROM information_schema.{of}"));
    }
    statements.extend(["SHOW TABLES", "SHOW ALL", "SELECT * FROM nowhere", "SELECT * FROM a.b.c"].map(str::to_owned));
    for mode in MODES {
        let world = World::told(mode).await;
        for role in [Role::Read, Role::Admin] {
            for sql in &statements {
                let told = told(&world, "acme", role, sql).await;
                let lower = told.to_lowercase();
                let asked = sql.to_lowercase();
                for secret in SECRETS {
                    assert!(asked.contains(secret) || !lower.contains(secret), "{mode:?} {sql}: {told}");
                }
                assert!(!told.starts_with("500"), "{mode:?} {sql}: {told}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_a_filter_fails_depends_on_the_rows_of_the_tenant_only() {
    for mode in MODES {
        let world = World::told(mode).await;
        // Each of these is an error on a row of globex and on no row of acme.
        for filter in [
            "1 / (CASE WHEN actor = 'mallory' THEN 0 ELSE 1 END) = 1",
            "CAST(CASE WHEN org_id = 'acme' THEN '1' ELSE org_id END AS INT) = 1",
            "1 / (length(org_id) - 6) < 0",
            "arrow_cast(severity, 'Int8') * CASE severity WHEN 6 THEN 1 / (severity - 6) ELSE 1 END >= 0",
        ] {
            for shape in [
                "SELECT count(*) AS n FROM security_events WHERE {f}",
                "SELECT count(*) AS n FROM security_events WHERE ({f}) AND time > '2025-01-01'",
            ] {
                let sql = shape.replace("{f}", filter);
                let told = told(&world, "acme", Role::Read, &sql).await;
                assert!(told.starts_with("200"), "{mode:?} {sql}: {told}");
            }
        }
        let joined = "SELECT count(*) AS n FROM security_events a JOIN cost_events b ON 1 / (length(a.org_id) - 6) = length(b.org_id) - 5";
        assert_eq!(told(&world, "acme", Role::Read, joined).await, "200 OK [{\"n\":0}]\n", "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tenant_sees_its_own_rows_and_only_admins_of_default_the_global_changes() {
    for mode in MODES {
        let world = World::told(mode).await;
        let sql = "SELECT event_id FROM changes ORDER BY event_id";
        for (org_id, role, wanted) in [
            ("acme", Role::Admin, "ch1,fb1,fb2,fb3,fb4,fb5"),
            ("default", Role::Read, "ch3"),
            ("default", Role::Admin, "ch2,ch3"),
            ("globex", Role::Admin, "fb6"),
            ("*", Role::Read, "ch2"),
        ] {
            let told = told(&world, org_id, role, sql).await;
            let wanted: Vec<_> =
                wanted.split(',').filter(|id| !id.is_empty()).map(|id| format!("{{\"event_id\":\"{id}\"}}")).collect();
            assert_eq!(told, format!("200 OK [{}]\n", wanted.join(",\n")), "{mode:?} {org_id} {role:?}");
        }
        let globex = told(
            &world,
            "globex",
            Role::Read,
            "SELECT count(*) AS n, max(\"globex.secret_field\") AS f FROM security_events",
        )
        .await;
        assert_eq!(globex, "200 OK [{\"n\":3,\"f\":\"hidden\"}]\n", "{mode:?}");
        let nobody =
            world.query.sql(&Scope::tenant("nobody"), "SELECT * FROM security_events").await.expect("a stream");
        assert_eq!(nobody.collect().await.expect("rows").iter().map(|batch| batch.num_rows()).sum::<usize>(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_an_error_without_its_name() {
    let world = World::told(super::fixture::Mode::Parquet).await;
    for entry in std::fs::read_dir(world.dir.path()).expect("the folder") {
        let path = entry.expect("a file").path();
        let length = std::fs::metadata(&path).expect("metadata").len();
        std::fs::write(&path, vec![0u8; length as usize]).expect("overwritten");
    }
    let rows = world.query.sql(&Scope::tenant("acme"), "SELECT * FROM security_events").await;
    let error = match rows {
        Ok(rows) => rows.collect().await.expect_err("damaged"),
        Err(error) => error,
    };
    assert_eq!(error, QueryError::Internal);
    assert!(!told(&world, "acme", Role::Read, "SELECT * FROM security_events").await.contains("secret"));
}
