//! The feed's client: whatever happens to its connection, each alert comes once and in order.

use std::sync::{Arc, Mutex};

use futures::{SinkExt, StreamExt};
use serde_json::json;
use tidegate::cli::feed::Follower;
use tidegate::cli::style::Style;
use tidegate::cli::tail::line;
use tidegate::config::ClientConfig;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

/// What the server does on one connection.
#[derive(Clone, Copy)]
enum Connection {
    /// Sends the alerts after the one that was asked for, up to this one, then closes without a word.
    Until(u64),
    /// The same, then tells that the subscriber missed some.
    UntilThenGap(u64),
    /// Sends this alert and the two before it again, whatever was asked for, then closes.
    Repeat(u64),
    /// Does not let the client in.
    Refuse(u16),
}

/// A feed that goes through a script, connection by connection; the queries it was asked.
#[expect(clippy::result_large_err, reason = "the type is that of the library's callback")]
async fn feed(script: &'static [Connection]) -> (ClientConfig, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let queries = asked.clone();
    tokio::spawn(async move {
        for connection in script {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut after = -1;
            let shake = |request: &Request, response: Response| {
                let query = request.uri().query().unwrap_or_default().to_owned();
                let seq = query.split('&').find_map(|pair| pair.strip_prefix("after=")).expect("after");
                after = seq.parse::<i64>().expect("a number");
                queries.lock().expect("a lock").push(query);
                match connection {
                    Connection::Refuse(status) => {
                        let mut refusal =
                            ErrorResponse::new(Some(r#"{"error":{"code":"no","message":"not you"}}"#.to_owned()));
                        *refusal.status_mut() = hyper::StatusCode::from_u16(*status).expect("a status");
                        Err(refusal)
                    }
                    _ => Ok(response),
                }
            };
            let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, shake).await else { continue };
            let first = (after + 1) as u64;
            let (seqs, gap) = match *connection {
                Connection::Until(last) => (first..=last, false),
                Connection::UntilThenGap(last) => (first..=last, true),
                Connection::Repeat(last) => (last - 2..=last, false),
                Connection::Refuse(_) => continue,
            };
            for seq in seqs {
                let frame = json!({"seq": seq, "alert": {"title": format!("alert {seq}")}}).to_string();
                socket.send(Message::text(frame)).await.expect("sent");
            }
            if gap {
                let frame = json!({"type": "gap", "missed": 3, "resume_after": 99}).to_string();
                socket.send(Message::text(frame)).await.expect("sent");
                // The client leaves to ask again.
                while let Some(Ok(_)) = socket.next().await {}
            }
        }
    });
    (ClientConfig { url, key: Some("tg_x".to_owned()), ..ClientConfig::default() }, asked)
}

#[tokio::test]
async fn cuts_gaps_and_repeats_are_made_good() {
    use Connection::{Refuse, Repeat, Until, UntilThenGap};
    let (config, asked) = feed(&[Until(2), Refuse(503), UntilThenGap(4), Repeat(5), Until(9)]).await;
    let mut follower = Follower::new(&config, Some("high"), None).expect("a follower");
    let mut pauses = 0;
    for seq in 0..=9 {
        let fired = follower.next(&mut |_, _| pauses += 1).await.expect("an alert");
        assert_eq!((fired.seq, fired.text("title")), (seq, format!("alert {seq}").as_str()));
    }
    assert_eq!(pauses, 4);
    let asked = asked.lock().expect("a lock").clone();
    let wanted = ["after=-1", "after=2", "after=2", "after=4", "after=5"].map(|after| format!("{after}&level=high"));
    assert_eq!(asked, wanted);
}

#[tokio::test]
async fn a_refusal_that_time_does_not_heal_ends_the_following() {
    let (config, _) = feed(&[Connection::Refuse(401)]).await;
    let mut follower = Follower::new(&config, None, Some(7)).expect("a follower");
    let error = follower.next(&mut |_, _| ()).await.expect_err("refused");
    assert!(
        format!("{error:#}").contains("401 no: not you") && format!("{error:#}").contains("TIDEGATE_CLIENT__KEY"),
        "{error:#}"
    );
}

#[tokio::test]
async fn an_alert_is_one_clean_line() {
    let fired = tidegate::cli::feed::Fired {
        seq: 1,
        alert: json!({"last_time": "2026-01-02T03:04:05.678Z", "level": "high", "title": "Bad\u{1b}[2J", "actor": "eve", "resource": "x"}),
    };
    assert_eq!(line(&fired, Style::plain()), "2026-01-02 03:04:05 high          Bad␣[2J eve · x");
}
