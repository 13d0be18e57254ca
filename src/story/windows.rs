//! Windows events in the flat form that NXLog-like forwarders write: Sysmon (schema 4.90), Security, System.

use serde_json::{Map, Value, json};

use super::cast::DOMAIN;
use super::random::Random;
use super::time;

/// One event before it is written.
#[derive(Debug, Clone)]
pub struct Event {
    /// When, µs since the epoch.
    pub at: i64,
    /// On which host.
    pub host: String,
    /// Channel, provider and provider GUID.
    pub channel: Channel,
    /// The event id.
    pub id: u32,
    /// The first line of the message.
    pub title: &'static str,
    /// The fields of this kind of event, in order.
    pub fields: Vec<(&'static str, String)>,
}

/// Where an event is logged, and by whom.
#[derive(Debug, Clone, Copy)]
pub struct Channel {
    name: &'static str,
    source: &'static str,
    guid: &'static str,
    keywords: &'static str,
    level: &'static str,
}

/// Sysmon.
pub const SYSMON: Channel = Channel {
    name: "Microsoft-Windows-Sysmon/Operational",
    source: "Microsoft-Windows-Sysmon",
    guid: "{5770385f-c22a-43e0-bf4c-06f5698ffbd9}",
    keywords: "0x8000000000000000",
    level: "4",
};
/// The security log, a success.
pub const SECURITY: Channel = Channel {
    name: "Security",
    source: "Microsoft-Windows-Security-Auditing",
    guid: "{54849625-5478-4994-a5ba-3e3b0328c30d}",
    keywords: "0x8020000000000000",
    level: "0",
};
/// The security log, a failure.
pub const SECURITY_FAILURE: Channel = Channel { keywords: "0x8010000000000000", ..SECURITY };
/// The service control manager, in the system log.
pub const SERVICES: Channel = Channel {
    name: "System",
    source: "Service Control Manager",
    guid: "{555908d1-a6d7-4695-8e1e-26931d2012f4}",
    keywords: "0x8080000000000000",
    level: "4",
};
/// The event log itself, in the security log.
pub const EVENTLOG: Channel = Channel {
    name: "Security",
    source: "Microsoft-Windows-Eventlog",
    guid: "{fc65ddd8-d6ef-4962-83d5-6e5cfe9ce148}",
    keywords: "0x4020000000000000",
    level: "4",
};

impl Event {
    /// The event, one line of JSON.
    pub fn line(self) -> String {
        let millis = time::millis(self.at);
        let mut record = Map::new();
        for (name, value) in [
            ("SourceName", self.channel.source),
            ("ProviderGuid", self.channel.guid),
            ("Level", self.channel.level),
            ("Keywords", self.channel.keywords),
            ("Channel", self.channel.name),
            ("Hostname", self.host.as_str()),
            ("TimeCreated", millis.as_str()),
            ("@timestamp", millis.as_str()),
        ] {
            record.insert(name.to_owned(), json!(value));
        }
        record.insert("EventID".to_owned(), json!(self.id));
        record.insert("Message".to_owned(), json!(message(self.title, &self.fields)));
        record.insert("Task".to_owned(), json!(self.id.to_string()));
        if self.channel.source == SYSMON.source {
            record.insert("RuleName".to_owned(), json!("-"));
            record.insert("UtcTime".to_owned(), json!(time::sysmon(self.at)));
        }
        for (name, value) in self.fields {
            record.insert(name.to_owned(), json!(value));
        }
        Value::Object(record).to_string()
    }
}

fn message(title: &str, fields: &[(&str, String)]) -> String {
    let mut text = title.to_owned();
    for (name, value) in fields {
        text.push_str("\r\n");
        text.push_str(name);
        text.push_str(": ");
        text.push_str(value);
    }
    text
}

/// A program: image, company, description, usual command line, usual parent.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Full path.
    pub image: &'static str,
    /// `OriginalFileName` of its version resource.
    pub original: &'static str,
    /// `Description`.
    pub description: &'static str,
    /// `Company`.
    pub company: &'static str,
    /// Command line.
    pub command: &'static str,
    /// Who starts it.
    pub parent: &'static str,
    /// The parent's command line.
    pub parent_command: &'static str,
}

/// Fields of a Sysmon event around a process.
pub(super) fn with_process(
    random: &mut Random,
    image: &str,
    user: &str,
    fields: Vec<(&'static str, String)>,
) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("ProcessGuid", guid(random)),
        ("ProcessId", random.between(400, 14_000).to_string()),
        ("Image", image.to_owned()),
    ];
    all.extend(fields);
    all.push(("User", user.to_owned()));
    all
}

fn guid(random: &mut Random) -> String {
    format!("{{ec2b781c-{}-{}-{}-000000000500}}", random.hex(4), random.hex(4), random.hex(4))
}

pub(super) fn hashes(random: &mut Random) -> String {
    format!(
        "SHA1={},MD5={},SHA256={},IMPHASH={}",
        random.hex(40).to_uppercase(),
        random.hex(32).to_uppercase(),
        random.hex(64).to_uppercase(),
        random.hex(32).to_uppercase()
    )
}

/// The security identifier of someone.
pub fn sid(person: &str) -> String {
    let number =
        person.bytes().fold(1_104_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 9_000 + 1_100;
    format!("S-1-5-21-3623811015-3361044348-30300820-{number}")
}

/// Sysmon 1: a process was created.
pub fn process(at: i64, host: String, user: &str, program: &Program, random: &mut Random) -> Event {
    let directory =
        if program.image.starts_with(r"C:\Windows") { r"C:\Windows\system32\" } else { r"C:\Users\Public\" };
    let integrity = if program.parent.ends_with("services.exe") { "System" } else { "Medium" };
    let fields = vec![
        ("FileVersion", "10.0.22621.3958".to_owned()),
        ("Description", program.description.to_owned()),
        ("Product", program.description.to_owned()),
        ("Company", program.company.to_owned()),
        ("OriginalFileName", program.original.to_owned()),
        ("CommandLine", program.command.to_owned()),
        ("CurrentDirectory", directory.to_owned()),
        ("LogonGuid", guid(random)),
        ("LogonId", format!("0x{}", random.hex(5))),
        ("TerminalSessionId", "1".to_owned()),
        ("IntegrityLevel", integrity.to_owned()),
        ("Hashes", hashes(random)),
        ("ParentProcessGuid", guid(random)),
        ("ParentProcessId", random.between(400, 14_000).to_string()),
        ("ParentImage", program.parent.to_owned()),
        ("ParentCommandLine", program.parent_command.to_owned()),
        ("ParentUser", user.to_owned()),
    ];
    Event {
        at,
        host,
        channel: SYSMON,
        id: 1,
        title: "Process Create:",
        fields: with_process(random, program.image, user, fields),
    }
}

/// Sysmon 3: a connection from (address) to (address, port).
pub fn connection(
    at: i64,
    host: String,
    user: &str,
    image: &str,
    path: (&str, &str, &str),
    random: &mut Random,
) -> Event {
    let (from, to, port) = path;
    let fields = vec![
        ("Protocol", if port == "53" { "udp" } else { "tcp" }.to_owned()),
        ("Initiated", "true".to_owned()),
        ("SourceIsIpv6", "false".to_owned()),
        ("SourceIp", from.to_owned()),
        ("SourceHostname", host.clone()),
        ("SourcePort", random.between(49_152, 65_535).to_string()),
        ("DestinationIsIpv6", "false".to_owned()),
        ("DestinationIp", to.to_owned()),
        ("DestinationHostname", "-".to_owned()),
        ("DestinationPort", port.to_owned()),
    ];
    Event {
        at,
        host,
        channel: SYSMON,
        id: 3,
        title: "Network connection detected:",
        fields: with_process(random, image, user, fields),
    }
}

/// Sysmon 11: a file was created.
pub fn file(at: i64, host: String, user: &str, image: &str, name: &str, random: &mut Random) -> Event {
    let fields = vec![("TargetFilename", name.to_owned()), ("CreationUtcTime", time::sysmon(at))];
    Event {
        at,
        host,
        channel: SYSMON,
        id: 11,
        title: "File created:",
        fields: with_process(random, image, user, fields),
    }
}

/// Sysmon 10: a process opened another: (source, target, granted access, call trace).
pub fn access(at: i64, host: String, what: (&str, &str, &str, &str), user: &str, random: &mut Random) -> Event {
    let (source, target, granted, calls) = what;
    let fields = vec![
        ("SourceProcessGUID", guid(random)),
        ("SourceProcessId", random.between(400, 14_000).to_string()),
        ("SourceThreadId", random.between(400, 14_000).to_string()),
        ("SourceImage", source.to_owned()),
        ("TargetProcessGUID", guid(random)),
        ("TargetProcessId", random.between(400, 14_000).to_string()),
        ("TargetImage", target.to_owned()),
        ("GrantedAccess", granted.to_owned()),
        ("CallTrace", calls.to_owned()),
        ("SourceUser", user.to_owned()),
        ("TargetUser", r"NT AUTHORITY\SYSTEM".to_owned()),
    ];
    Event { at, host, channel: SYSMON, id: 10, title: "Process accessed:", fields }
}

/// Security 4624: a logon.
pub fn logon(at: i64, host: String, person: &str, kind: &str, from: &str, random: &mut Random) -> Event {
    let package = if kind == "3" { ("NtLmSsp ", "NTLM") } else { ("Advapi  ", "Negotiate") };
    let fields = vec![
        ("SubjectUserSid", "S-1-0-0".to_owned()),
        ("SubjectUserName", "-".to_owned()),
        ("SubjectDomainName", "-".to_owned()),
        ("SubjectLogonId", "0x0".to_owned()),
        ("TargetUserSid", sid(person)),
        ("TargetUserName", person.to_owned()),
        ("TargetDomainName", DOMAIN.to_owned()),
        ("TargetLogonId", format!("0x{}", random.hex(6))),
        ("LogonType", kind.to_owned()),
        ("LogonProcessName", package.0.to_owned()),
        ("AuthenticationPackageName", package.1.to_owned()),
        (
            "WorkstationName",
            if kind == "3" { host.split('.').next().unwrap_or("-").to_owned() } else { "-".to_owned() },
        ),
        ("ProcessName", "-".to_owned()),
        ("IpAddress", from.to_owned()),
        ("IpPort", random.between(49_152, 65_535).to_string()),
        ("ElevatedToken", "%%1842".to_owned()),
    ];
    Event { at, host, channel: SECURITY, id: 4624, title: "An account was successfully logged on.", fields }
}
