//! The reference event of the load tests: a cloud-audit record of about 516 bytes with 19 fields and one nested object, its
//! strings as varied as those of real records.
//!
//! What varies, and how much: the id, the request id and the time are new in every event; users (5,000), addresses (20,000),
//! sessions (65,536) and resources (100,000) come back with a skew, a few of them most often; actions (24), regions (8), agents (8) and
//! error codes (5, in 3 % of the events) are few. Event `i` is the same on every machine.

use std::io::Write as _;

use super::random::Random;
use super::time;

const ACTIONS: [(&str, &str); 24] = [
    ("storage", "GetObject"),
    ("storage", "PutObject"),
    ("compute", "DescribeInstances"),
    ("keys", "Decrypt"),
    ("identity", "AssumeRole"),
    ("storage", "ListObjects"),
    ("secrets", "GetSecret"),
    ("logs", "PutLogEvents"),
    ("compute", "DescribeVolumes"),
    ("database", "Query"),
    ("identity", "GetCallerIdentity"),
    ("registry", "PullImage"),
    ("compute", "RunInstances"),
    ("network", "DescribeVpcs"),
    ("identity", "ListRoles"),
    ("functions", "Invoke"),
    ("queue", "ReceiveMessage"),
    ("queue", "SendMessage"),
    ("keys", "GenerateDataKey"),
    ("compute", "TerminateInstances"),
    ("identity", "CreateAccessKey"),
    ("network", "AuthorizeIngress"),
    ("storage", "DeleteObject"),
    ("identity", "UpdatePolicy"),
];
const REGIONS: [&str; 8] = [
    "eu-north-1",
    "eu-west-1",
    "us-east-1",
    "us-west-2",
    "ap-southeast-1",
    "eu-central-1",
    "sa-east-1",
    "ap-northeast-1",
];
const AGENTS: [&str; 8] = [
    "aws-sdk-go-v2/1.30.3 os/linux",
    "Boto3/1.35.10 Python/3.12.5",
    "console.example.com",
    "aws-cli/2.17.42 os/macos#23.6.0",
    "Terraform/1.9.5 provider/5.64.0",
    "aws-sdk-java/2.27.14 Linux",
    "aws-sdk-js/3.637.0 nodejs#20",
    "kubernetes/1.30.3 (linux/amd64)",
];
const ERRORS: [&str; 5] = ["AccessDenied", "Throttling", "NotFound", "InvalidParameter", "Unauthorized"];

/// Appends reference event `i` as JSON, without a line end. `base_us` is the time of event 0; each is a millisecond later.
pub fn reference_event(i: u64, base_us: i64, into: &mut Vec<u8>) {
    let mut random = Random::new(i.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x7469_6465);
    let skewed =
        |random: &mut Random, bound: u64| random.below(bound).min(random.below(bound)).min(random.below(bound));
    let (service, action) = *random.pick_skewed(&ACTIONS);
    let user = skewed(&mut random, 5_000);
    let address = skewed(&mut random, 20_000);
    let resource = skewed(&mut random, 100_000);
    let failed = random.per_mille(30);
    let (id_high, id_low, request) = (random.bits(), random.bits(), random.bits());
    let at = time::millis(base_us.saturating_add(i64::try_from(i).unwrap_or(i64::MAX).saturating_mul(1_000)));
    // Writing to a vector cannot fail.
    let _ = write!(
        into,
        r#"{{"id":"{id_high:016x}{id_low:016x}","time":"{at}","version":"1.09","service":"{service}","action":"{action}","region":"{}","account":"{:012}","user":"user-{user:04}@harbor.example","user_type":"{}","src_ip":"10.{}.{}.{}","user_agent":"{}","request_id":"{request:016X}","resource":"res:{service}:obj/{resource:06}","read_only":{},"bytes_in":{},"bytes_out":{},"duration_ms":{},"error":"{}","session":{{"id":"s-{:04x}","mfa":{},"issuer":"team-{:02}"}},"mgmt":{}}}"#,
        random.pick_skewed(&REGIONS),
        418_273_640_900 + user % 40,
        random.pick_skewed(&["role", "user", "service"]),
        address >> 12 & 0xff,
        address >> 6 & 0x3f,
        address & 0x3f,
        random.pick_skewed(&AGENTS),
        !matches!(action.as_bytes().first(), Some(b'P' | b'R' | b'C' | b'U' | b'T')),
        skewed(&mut random, 65_536),
        skewed(&mut random, 4_000_000),
        skewed(&mut random, 900),
        if failed { *random.pick(&ERRORS) } else { "" },
        random.below(65_536),
        random.per_mille(700),
        user % 37,
        !failed,
    );
}
