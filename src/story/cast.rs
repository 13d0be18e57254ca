//! Who and what is in the story: an organisation with a few AWS accounts, its people, roles, hosts and addresses.
//! Addresses are of the ranges that RFC 5737 keeps for documentation.

/// An AWS account.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    /// Its number.
    pub id: &'static str,
    /// Its name in the bill.
    pub name: &'static str,
    /// The tag `environment` of what is in it.
    pub environment: &'static str,
}

/// The accounts, the busiest first.
pub const ACCOUNTS: [Account; 3] = [
    Account { id: "418273640915", name: "harborline-production", environment: "prod" },
    Account { id: "729104385561", name: "harborline-data", environment: "prod" },
    Account { id: "305518846227", name: "harborline-development", environment: "dev" },
];

/// The account that gets the bill.
pub const PAYER: &str = "550912763384";

/// The regions that are in use.
pub const REGIONS: [(&str, &str); 3] =
    [("eu-north-1", "EU (Stockholm)"), ("eu-west-1", "EU (Ireland)"), ("us-east-1", "US East (N. Virginia)")];

/// A region that nobody uses until the intruder does.
pub const QUIET_REGION: (&str, &str) = ("ap-northeast-3", "Asia Pacific (Osaka)");

/// People, by login name.
pub const PEOPLE: [&str; 42] = [
    "anna.berg",
    "tunde.okafor",
    "maria.lindqvist",
    "jonas.weber",
    "priya.raman",
    "liam.obrien",
    "sofia.rossi",
    "kenji.mori",
    "elena.petrova",
    "david.cohen",
    "fatima.zahra",
    "lucas.silva",
    "emma.dubois",
    "noah.jansen",
    "olga.ivanova",
    "peter.novak",
    "ingrid.haug",
    "samir.patel",
    "chloe.martin",
    "viktor.horvat",
    "amina.diallo",
    "oscar.nilsson",
    "julia.kowalska",
    "marco.bianchi",
    "hannah.schmidt",
    "pavel.dvorak",
    "lina.larsen",
    "carlos.mendes",
    "yuki.tanaka",
    "ben.carter",
    "nora.walsh",
    "ivan.marin",
    "alice.moreau",
    "tomas.vega",
    "greta.olsen",
    "rahul.gupta",
    "zoe.papas",
    "erik.lund",
    "dana.levi",
    "hugo.blanc",
    "mina.park",
    "paul.fischer",
];

/// The person whose account is taken over.
pub const VICTIM: &str = "maria.lindqvist";
/// The user that the intruder makes an administrator of.
pub const BACKDOOR: &str = "svc-backup";
/// The person who opens the document.
pub const OPENER: &str = "t.okafor";

/// Where the takeover comes from.
pub const INTRUDER_IP: &str = "198.51.100.23";
/// Where the implant on the workstation calls home.
pub const C2_IP: &str = "198.51.100.77";

/// Roles of programs: role name, session name, what it mostly talks to.
pub const ROLES: [(&str, &str, &str); 10] = [
    ("orders-api-task", "ecs-orders", "dynamodb"),
    ("billing-lambda", "billing-fn", "s3"),
    ("eks-node-group", "i-0a3f9c1d2e4b5a697", "ec2"),
    ("ci-deploy", "GitHubActions", "cloudformation"),
    ("data-lake-etl", "glue-session", "s3"),
    ("search-indexer", "indexer", "s3"),
    ("metrics-collector", "prometheus", "monitoring"),
    ("backup-runner", "AWSBackup", "ec2"),
    ("image-builder", "packer", "ec2"),
    ("secrets-rotator", "rotator", "secretsmanager"),
];

/// Buckets.
pub const BUCKETS: [&str; 9] = [
    "harborline-orders-prod",
    "harborline-datalake-raw",
    "harborline-datalake-curated",
    "harborline-static-assets",
    "harborline-build-cache",
    "harborline-logs-archive",
    "harborline-customer-exports",
    "harborline-terraform-state",
    "harborline-ml-features",
];

/// The bucket that is emptied.
pub const TREASURE: &str = "harborline-customer-exports";

/// The address someone works from: the office, the VPN, or a home.
pub fn address(person: usize, travelling: bool) -> String {
    match (person % 3, travelling) {
        (_, true) => format!("192.0.2.{}", 10 + person),
        (0, _) => "203.0.113.10".to_owned(),
        (1, _) => format!("203.0.113.{}", 64 + person),
        _ => format!("192.0.2.{}", 100 + person),
    }
}

/// The AWS principal id of a name: the same name always has the same id.
pub fn principal_id(prefix: &str, name: &str) -> String {
    let mut seed =
        super::random::Random::new(name.bytes().fold(7, |seed, byte| seed * 131 % 1_000_000_007 + u64::from(byte)));
    format!("{prefix}{}", seed.capitals(17))
}

/// The Windows domain.
pub const DOMAIN: &str = "HARBOR";
/// The workstation of the one who opens the document.
pub const PATIENT_ZERO: &str = "WS-0417.harbor.example";
/// The server that the intruder moves to.
pub const FILE_SERVER: &str = "SRV-FILE01.harbor.example";

/// The name of the host with this number: a few servers, many workstations.
pub fn host(number: u64) -> String {
    match number {
        0 => "DC01.harbor.example".to_owned(),
        1 => "DC02.harbor.example".to_owned(),
        2 => FILE_SERVER.to_owned(),
        3 => "SRV-SQL01.harbor.example".to_owned(),
        4 => "SRV-WEB02.harbor.example".to_owned(),
        number => format!("WS-{:04}.harbor.example", 300 + number * 3),
    }
}

/// How many hosts there are.
pub const HOSTS: u64 = 72;
