//! The command line: every flag has its twins, help fits a screen, completions print, exit codes hold.

use std::process::{Output, Stdio};

use clap::Parser;
use clap_complete::Shell;
use tidegate::cli::args::{self, Cli};
use tidegate::cli::completions;
use tidegate::config::keys::Keys;

/// Flags that cannot stand in the configuration file: the one that names it, and those that print and end.
const WITHOUT_TWINS: [&str; 3] = ["config", "help", "version"];

fn each_command(command: &clap::Command, path: &str, visit: &mut dyn FnMut(&str, &clap::Command)) {
    visit(path, command);
    for subcommand in command.get_subcommands() {
        each_command(subcommand, &format!("{path} {}", subcommand.get_name()), visit);
    }
}

#[test]
fn the_definitions_hold_together() {
    args::command().debug_assert();
}

#[test]
fn every_flag_is_a_key_with_an_environment_and_a_toml_twin() {
    let keys = Keys::of_config();
    let mut flags = 0;
    each_command(&args::command(), "tidegate", &mut |path, command| {
        for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
            let id = arg.get_id().as_str();
            if WITHOUT_TWINS.contains(&id) {
                continue;
            }
            let key =
                keys.get(id).unwrap_or_else(|| panic!("{path} --{}: no key {id:?}", arg.get_long().unwrap_or("?")));
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&key.env_name()), "{path} --{id}: its help does not name {}", key.env_name());
            flags += 1;
        }
    });
    assert!(flags > 30, "{flags} flags");
}

#[test]
fn a_flag_reaches_the_key_of_its_name() {
    for (line, path, text) in [
        ("tidegate serve --listen 127.0.0.1:9", "listen", "127.0.0.1:9"),
        ("tidegate serve --data-dir=/x", "data_dir", "/x"),
        ("tidegate demo --fast", "demo.fast", "true"),
        ("tidegate tail --after -1", "tail.after", "-1"),
        ("tidegate log dump --from 7", "log_files.from", "7"),
        ("tidegate key create --org acme --role read", "key.org", "acme"),
        ("tidegate send x --batch-events 5", "send.batch_events_max", "5"),
    ] {
        let invocation = args::parse(line.split(' ').map(Into::into)).unwrap_or_else(|error| panic!("{line}: {error}"));
        let found = invocation.sources.flags.iter().find(|(id, _, _)| id == path);
        assert_eq!(found.map(|(_, _, text)| text.as_str()), Some(text), "{line}: {:?}", invocation.sources.flags);
    }
    let invocation = args::parse(["tidegate", "demo"].map(Into::into)).expect("parsed");
    assert_eq!(invocation.sources.flags, [], "what was not typed is not a flag");
    assert!(Cli::try_parse_from(["tidegate", "send"]).is_err(), "send needs a file");
}

#[test]
fn every_help_has_an_example_and_fits_a_screen() {
    each_command(&args::command(), "tidegate", &mut |path, command| {
        let hidden = command.is_hide_set();
        let mut command = command.clone().term_width(110);
        let help = command.render_long_help().to_string();
        assert!(help.lines().count() <= 50, "{path}: {} lines", help.lines().count());
        let short = command.render_help().to_string();
        assert!(short.lines().count() <= 42, "{path}: {} lines\n{short}", short.lines().count());
        assert!(hidden || short.contains("Example: ") || path == "tidegate", "{path} has no example");
    });
}

#[test]
fn completions_print_for_every_shell() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
        let script = String::from_utf8(completions(shell)).expect("text");
        assert!(script.contains("data-dir") && script.contains("completions"), "{shell}");
    }
}

fn tidegate(args: &[&str], env: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = crate::server::tidegate(args);
    command
        .envs(env.iter().copied())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

#[test]
fn exit_codes_tell_how_it_went() {
    for (args, env, code, text) in [
        (&["--version"][..], &[][..], 0, "tidegate"),
        (&["completions", "bash"], &[], 0, "complete"),
        (&["docs", "configuration"], &[], 0, "# Configuration"),
        (&["check"], &[], 0, "rules:"),
        (&["nonsense"], &[], 2, "unrecognized subcommand"),
        (&["serve", "--lissten", "x"], &[], 2, "--listen"),
        (&["serve", "--listen", "x"], &[], 2, "flag --listen: listen: invalid socket address"),
        (&["check"], &[("TIDEGATE_LISTN", "x")], 2, "did you mean TIDEGATE_LISTEN?"),
        (&["check", "--config", "/nowhere.toml"], &[], 2, "cannot read /nowhere.toml"),
        (&["check", "--rules", "/nowhere"], &[], 1, "/nowhere"),
        (&["key", "create"], &[], 2, "--org is missing"),
        (&["key", "create", "--org", "a", "--role", "boss"], &[], 2, "no such role"),
        (&["log", "ls"], &[], 1, "there is no log"),
        (&["sql", "SELECT 1", "--url", "http://127.0.0.1:1"], &[], 1, "is the server up?"),
        (&["sql", "SELECT 1", "--url", "https://example.org"], &[], 1, "https is not spoken here"),
        (&["send", "/nowhere.json"], &[], 1, "cannot open /nowhere.json"),
    ] {
        let output = tidegate(args, env);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?} {env:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}\nwanted {text}");
        assert!(!said.contains('\u{1b}'), "{args:?}: colours without a terminal");
    }
}

#[test]
fn rules_that_do_not_compile_are_told_with_their_place() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(
        folder.path().join("bad.yml"),
        "title: Bad\nlogsource: {product: aws}\ndetection: {s: {a: b}, condition: nothing}\n",
    )
    .expect("a file");
    let output = tidegate(&["check", "--rules", &folder.path().to_string_lossy()], &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("{}/bad.yml:", folder.path().display())), "{said}");
    let output = tidegate(&["check", "--rules", &folder.path().to_string_lossy()], &[("TIDEGATE_LISTEN", "x")]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.code() == Some(2) && said.contains("bad.yml:") && said.contains("TIDEGATE_LISTEN"), "{said}");
}

#[test]
fn keys_are_made_listed_and_revoked_while_no_server_runs_and_the_log_holds_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().to_string_lossy().into_owned();
    let run = |args: &[&str]| {
        let output = tidegate(&[args, &["--data-dir", &data]].concat(), &[]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let key = run(&["key", "create", "--org", "acme", "--role", "ingest", "--label", "edge agents"]);
    assert!(key.starts_with("tg_") && key.lines().count() == 1, "{key}");
    let secret = key.trim().rsplit('_').next().expect("a secret").to_owned();
    let list = run(&["key", "list"]);
    let line = list.lines().find(|line| line.contains("acme")).expect("the key");
    assert!(line.contains("ingest") && line.contains("edge agents") && !list.contains(&secret), "{list}");
    let id = line.split_whitespace().next().expect("an id");
    assert!(run(&["key", "revoke", id]).contains("revoked"));
    assert!(run(&["log", "verify"]).contains("0 damaged places"));
    let dump = run(&["log", "dump"]);
    assert!(dump.lines().count() == 2 && dump.contains("\"dataset\":\"changes\"") && !dump.contains(&secret), "{dump}");
    assert_eq!(run(&["log", "ls"]).lines().count(), 2 + usize::from(run(&["log", "ls"]).lines().count() > 2));
    let output = tidegate(&["key", "revoke", "nobody", "--data-dir", &data], &[]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn keys_of_many_machines_are_not_changed_in_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let place = data.to_string_lossy().into_owned();
    let node = [("TIDEGATE_ROLE", "ingest"), ("TIDEGATE_FLUVIO__ADDRESS", "127.0.0.1:9")];
    let wishes: [&[&str]; 3] = [&["create", "--org", "a", "--role", "ingest"], &["list"], &["revoke", "some"]];
    let refused = |environment: &[(&str, &str)]| {
        for wish in wishes {
            let output = tidegate(&[&["key"], wish, &["--data-dir", &place]].concat(), environment);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(1) && said.contains("keys are in Fluvio"), "{wish:?}: {said}");
            assert!(output.stdout.is_empty() && !data.join("log").exists(), "{wish:?}");
        }
    };
    refused(&node);
    // Of a node whose role was said to `serve` alone.
    std::fs::create_dir_all(data.join("node")).expect("a folder");
    refused(&[]);
}

#[test]
fn the_doctor_looks_at_everything_and_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").to_string_lossy().into_owned();
    let output = tidegate(&["doctor", "--data-dir", &data, "--fsyncs", "5", "--listen", "127.0.0.1:0"], &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    for name in ["data folder", "fsync", "disk space", "open files", "clock", "port", "rules"] {
        assert!(said.lines().any(|line| line.contains(&format!("  {name} "))), "{name} is missing:\n{said}");
    }
    assert!(!folder.path().join("data").exists(), "the doctor changes nothing");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let output = tidegate(&["doctor", "--data-dir", &data, "--fsyncs", "5", "--listen", &address], &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && said.contains("in use by another program"), "{said}");
}
