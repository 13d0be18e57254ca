//! AWS CloudTrail records ("CloudTrail record contents", event version 1.09): what an organisation's people and programs do
//! all day.

use serde_json::{Value, json};

use super::cast::{self, ACCOUNTS, BUCKETS, PEOPLE, REGIONS, ROLES, address, principal_id};
use super::random::Random;
use super::time;

/// Who makes a call.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A user of IAM with an access key, or at the console when there is none.
    User {
        /// Login name.
        name: &'static str,
        /// Access key id.
        key: Option<String>,
    },
    /// A session of a role.
    Session {
        /// Role.
        role: String,
        /// Session name.
        session: String,
        /// Whether the session was opened with a second factor.
        mfa: bool,
    },
    /// A service of AWS itself.
    Service(&'static str),
}

impl Caller {
    fn identity(&self, account: &str, at: i64) -> Value {
        match self {
            Self::User { name, key } => {
                let mut identity = json!({
                    "type": "IAMUser",
                    "principalId": principal_id("AIDA", name),
                    "arn": format!("arn:aws:iam::{account}:user/{name}"),
                    "accountId": account,
                    "userName": name,
                });
                if let Some(key) = key {
                    identity["accessKeyId"] = json!(key);
                }
                identity
            }
            Self::Session { role, session, mfa } => json!({
                "type": "AssumedRole",
                "principalId": format!("{}:{session}", principal_id("AROA", role)),
                "arn": format!("arn:aws:sts::{account}:assumed-role/{role}/{session}"),
                "accountId": account,
                "accessKeyId": principal_id("ASIA", &format!("{role}/{session}")).chars().take(20).collect::<String>(),
                "sessionContext": {
                    "sessionIssuer": {
                        "type": "Role",
                        "principalId": principal_id("AROA", role),
                        "arn": format!("arn:aws:iam::{account}:role/{role}"),
                        "accountId": account,
                        "userName": role,
                    },
                    "attributes": {"creationDate": time::seconds(at - at.rem_euclid(3_600_000_000)), "mfaAuthenticated": mfa.to_string()},
                },
            }),
            Self::Service(name) => json!({"type": "AWSService", "invokedBy": name}),
        }
    }
}

/// One call, as it is logged.
#[derive(Debug, Clone)]
pub struct Call {
    /// When, µs since the epoch.
    pub at: i64,
    /// By whom.
    pub caller: Caller,
    /// In which account.
    pub account: &'static str,
    /// In which region.
    pub region: &'static str,
    /// From where.
    pub address: String,
    /// With which program.
    pub agent: String,
    /// `s3` for `s3.amazonaws.com`.
    pub service: &'static str,
    /// `GetObject`.
    pub name: &'static str,
    /// Whether it only reads.
    pub read_only: bool,
    /// `requestParameters`.
    pub request: Value,
    /// `responseElements`.
    pub response: Value,
    /// `errorCode` and `errorMessage`.
    pub error: Option<(&'static str, String)>,
    /// More members of the record: `additionalEventData`, `resources`, ….
    pub more: Vec<(&'static str, Value)>,
}

impl Call {
    /// The record, one line of JSON. `ids` makes its ids.
    pub fn line(self, ids: &mut Random) -> String {
        let host = format!("{}.{}.amazonaws.com", self.service, self.region);
        let sign_in = self.service == "signin";
        let data = self.more.iter().any(|(name, value)| *name == "eventCategory" && value == "Data");
        let mut record = json!({
            "eventVersion": "1.09",
            "userIdentity": self.caller.identity(self.account, self.at),
            "eventTime": time::seconds(self.at),
            "eventSource": format!("{}.amazonaws.com", self.service),
            "eventName": self.name,
            "awsRegion": self.region,
            "sourceIPAddress": self.address,
            "userAgent": self.agent,
        });
        if let Some((code, message)) = self.error {
            // A failed console login has a message only.
            if !code.is_empty() {
                record["errorCode"] = json!(code);
            }
            record["errorMessage"] = json!(message);
        }
        record["requestParameters"] = self.request;
        record["responseElements"] = self.response;
        record["requestID"] = json!(ids.uuid());
        record["eventID"] = json!(ids.uuid());
        record["readOnly"] = json!(self.read_only);
        record["eventType"] = json!(if sign_in { "AwsConsoleSignIn" } else { "AwsApiCall" });
        record["managementEvent"] = json!(!data);
        record["recipientAccountId"] = json!(self.account);
        record["eventCategory"] = json!("Management");
        for (name, value) in self.more {
            record[name] = value;
        }
        if !matches!(self.caller, Caller::Service(_)) {
            let host = if sign_in { "signin.aws.amazon.com".to_owned() } else { host };
            record["tlsDetails"] = json!({"tlsVersion": "TLSv1.3", "cipherSuite": "TLS_AES_128_GCM_SHA256", "clientProvidedHostHeader": host});
        }
        record.to_string()
    }
}

/// What a call names in its request.
#[derive(Debug, Clone, Copy)]
enum Names {
    Nothing,
    Bucket,
    Object,
    Instances,
    Parameter,
    Key,
    Role,
    Table,
    LogGroup,
    Function,
    Secret,
    Stack,
    Cluster,
}

type Usual = (&'static str, &'static str, bool, Names);

/// What people look at, the most usual first.
const BY_PEOPLE: [Usual; 26] = [
    ("ec2", "DescribeInstances", true, Names::Instances),
    ("s3", "ListBuckets", true, Names::Nothing),
    ("cloudwatch", "DescribeAlarms", true, Names::Nothing),
    ("ec2", "DescribeSecurityGroups", true, Names::Nothing),
    ("logs", "FilterLogEvents", true, Names::LogGroup),
    ("logs", "DescribeLogGroups", true, Names::LogGroup),
    ("iam", "GetRole", true, Names::Role),
    ("cloudformation", "DescribeStacks", true, Names::Stack),
    ("s3", "GetBucketLocation", true, Names::Bucket),
    ("lambda", "ListFunctions20150331", true, Names::Nothing),
    ("rds", "DescribeDBInstances", true, Names::Nothing),
    ("ec2", "DescribeVpcs", true, Names::Nothing),
    ("ec2", "DescribeSubnets", true, Names::Nothing),
    ("health", "DescribeEventAggregates", true, Names::Nothing),
    ("ce", "GetCostAndUsage", true, Names::Nothing),
    ("iam", "ListRoles", true, Names::Nothing),
    ("eks", "DescribeCluster", true, Names::Cluster),
    ("kms", "DescribeKey", true, Names::Key),
    ("sts", "GetCallerIdentity", true, Names::Nothing),
    ("lambda", "GetFunction20150331v2", true, Names::Function),
    ("ecs", "DescribeServices", true, Names::Cluster),
    ("dynamodb", "DescribeTable", true, Names::Table),
    ("cloudtrail", "LookupEvents", true, Names::Nothing),
    ("ec2", "StartInstances", false, Names::Instances),
    ("ec2", "CreateTags", false, Names::Instances),
    ("cloudwatch", "PutDashboard", false, Names::Nothing),
];

/// What programs do, the most usual first.
const BY_PROGRAMS: [Usual; 20] = [
    ("kms", "Decrypt", true, Names::Key),
    ("s3", "GetObject", true, Names::Object),
    ("sts", "AssumeRole", true, Names::Role),
    ("s3", "PutObject", false, Names::Object),
    ("ssm", "GetParameter", true, Names::Parameter),
    ("kms", "GenerateDataKey", true, Names::Key),
    ("logs", "CreateLogStream", false, Names::LogGroup),
    ("secretsmanager", "GetSecretValue", true, Names::Secret),
    ("dynamodb", "DescribeTable", true, Names::Table),
    ("ecr", "GetAuthorizationToken", true, Names::Nothing),
    ("ecr", "BatchGetImage", true, Names::Nothing),
    ("ec2", "DescribeNetworkInterfaces", true, Names::Nothing),
    ("autoscaling", "DescribeAutoScalingGroups", true, Names::Nothing),
    ("ec2", "DescribeTags", true, Names::Instances),
    ("ssm", "UpdateInstanceInformation", false, Names::Nothing),
    ("elasticloadbalancing", "DescribeTargetHealth", true, Names::Nothing),
    ("cloudformation", "CreateChangeSet", false, Names::Stack),
    ("lambda", "UpdateFunctionCode20150331v2", false, Names::Function),
    ("ec2", "CreateSnapshot", false, Names::Nothing),
    ("dynamodb", "CreateBackup", false, Names::Table),
];

const BROWSERS: [&str; 4] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 Safari/537.36 Edg/128.0.0.0",
];

const SDKS: [&str; 6] = [
    "aws-sdk-go-v2/1.30.3 os/linux lang/go#1.22.6 md/GOOS#linux md/GOARCH#amd64 api/dynamodb#1.34.4",
    "Boto3/1.35.10 md/Botocore#1.35.10 ua/2.0 os/linux#6.1.102 md/arch#x86_64 lang/python#3.12.5",
    "aws-sdk-java/2.27.14 Linux/6.1.102 OpenJDK_64-Bit_Server_VM/21.0.4 Java/21.0.4",
    "aws-sdk-js/3.637.0 ua/2.0 os/linux#5.10.223 lang/js md/nodejs#20.16.0 api/s3#3.637.0",
    "APN/1.0 HashiCorp/1.0 Terraform/1.9.5 (+https://www.terraform.io) terraform-provider-aws/5.64.0",
    "aws-sdk-rust/1.3.3 os/linux lang/rust/1.81.0",
];

/// A record of an ordinary moment.
pub fn ordinary(random: &mut Random, ids: &mut Random, at: i64) -> String {
    match random.below(100) {
        0..55 => by_program(random, at),
        55..93 => by_person(random, at),
        93..96 => login(random, at),
        _ => by_service(random, at),
    }
    .line(ids)
}

fn by_program(random: &mut Random, at: i64) -> Call {
    let (role, session, own) = *random.pick_skewed(&ROLES);
    let favourite = BY_PROGRAMS.iter().filter(|usual| usual.0 == own).nth(random.below(2) as usize);
    let usual =
        favourite.filter(|_| random.per_mille(400)).copied().unwrap_or_else(|| *random.pick_skewed(&BY_PROGRAMS));
    let caller = Caller::Session { role: role.to_owned(), session: session.to_owned(), mfa: false };
    let place = role.len();
    let address = format!("10.{}.{}.{}", 20 + place % 4, random.below(16), random.between(4, 250));
    let agent = SDKS[place % SDKS.len()].to_owned();
    call(random, at, caller, address, agent, usual)
}

fn by_person(random: &mut Random, at: i64) -> Call {
    let person = random.below(PEOPLE.len() as u64) as usize;
    let role =
        ["AWSReservedSSO_ReadOnly_5f1c02ab", "AWSReservedSSO_PowerUser_91d27c40", "AWSReservedSSO_Developer_c8a3e10d"]
            [person % 3];
    let caller =
        Caller::Session { role: role.to_owned(), session: format!("{}@harborline.example", PEOPLE[person]), mfa: true };
    let usual = *random.pick_skewed(&BY_PEOPLE);
    let agent = if random.per_mille(300) {
        "aws-cli/2.17.42 md/awscrt#0.21.2 ua/2.0 os/macos#23.6.0 md/arch#arm64 lang/python#3.11.9 md/prompt#off"
            .to_owned()
    } else {
        BROWSERS[person % BROWSERS.len()].to_owned()
    };
    let travelling = random.per_mille(20);
    call(random, at, caller, address(person, travelling), agent, usual)
}

fn by_service(random: &mut Random, at: i64) -> Call {
    let service = *random.pick(&[
        "lambda.amazonaws.com",
        "ec2.amazonaws.com",
        "autoscaling.amazonaws.com",
        "config.amazonaws.com",
    ]);
    let usual = ("sts", "AssumeRole", true, Names::Role);
    let mut call = call(random, at, Caller::Service(service), service.to_owned(), service.to_owned(), usual);
    call.error = None;
    call
}

/// A login at the console: with a second factor, sometimes after a typing error.
fn login(random: &mut Random, at: i64) -> Call {
    let person = random.below(PEOPLE.len() as u64) as usize;
    let failed = random.per_mille(40);
    let travelling = random.per_mille(50);
    console_login(at, PEOPLE[person], address(person, travelling), BROWSERS[person % BROWSERS.len()], failed, true)
}

/// A login at the console.
pub fn console_login(at: i64, name: &'static str, address: String, agent: &str, failed: bool, mfa: bool) -> Call {
    let word = |yes: bool| if yes { "Yes" } else { "No" };
    Call {
        at,
        caller: Caller::User { name, key: None },
        account: ACCOUNTS[0].id,
        region: "us-east-1",
        address,
        agent: agent.to_owned(),
        service: "signin",
        name: "ConsoleLogin",
        read_only: false,
        request: Value::Null,
        response: json!({"ConsoleLogin": if failed { "Failure" } else { "Success" }}),
        error: failed.then(|| ("", "Failed authentication".to_owned())),
        more: vec![(
            "additionalEventData",
            json!({"LoginTo": "https://console.aws.amazon.com/console/home", "MobileVersion": "No", "MFAUsed": word(mfa && !failed)}),
        )],
    }
}

fn call(random: &mut Random, at: i64, caller: Caller, address: String, agent: String, usual: Usual) -> Call {
    let (service, name, read_only, names) = usual;
    let account = random.pick_skewed(&ACCOUNTS).id;
    let region = random.pick_skewed(&REGIONS).0;
    let (request, more) = request(random, names, account, region);
    let error = random.per_mille(18).then(|| failure(random, service, name, account));
    let response = if read_only || error.is_some() { Value::Null } else { json!({"_return": true}) };
    Call { at, caller, account, region, address, agent, service, name, read_only, request, response, error, more }
}

fn failure(random: &mut Random, service: &str, name: &str, account: &str) -> (&'static str, String) {
    match random.below(3) {
        0 => ("ThrottlingException", "Rate exceeded".to_owned()),
        1 => ("ResourceNotFoundException", "The requested resource does not exist".to_owned()),
        _ => (
            "AccessDenied",
            format!("User is not authorized to perform: {service}:{name} on resource: arn:aws:{service}:*:{account}:*"),
        ),
    }
}

fn request(random: &mut Random, names: Names, account: &str, region: &str) -> (Value, Vec<(&'static str, Value)>) {
    let arn = |service: &str, what: String| format!("arn:aws:{service}:{region}:{account}:{what}");
    let mut more = Vec::new();
    let request = match names {
        Names::Nothing => Value::Null,
        Names::Bucket => json!({"bucketName": random.pick_skewed(&BUCKETS), "location": ""}),
        Names::Object => {
            let bucket = *random.pick_skewed(&BUCKETS);
            let key = format!(
                "{}/{:02}/part-{:05}.parquet",
                random.pick(&["orders", "events", "exports", "features"]),
                random.below(24),
                random.below(4_000)
            );
            more = object_event(random, bucket, account, 180_000);
            json!({"bucketName": bucket, "Host": format!("{bucket}.s3.{region}.amazonaws.com"), "key": key})
        }
        Names::Instances => json!({"instancesSet": {"items": [{"instanceId": format!("i-0{}", random.hex(16))}]}}),
        Names::Parameter => {
            json!({"name": format!("/{}/{}", random.pick(&["orders", "billing", "search"]), random.pick(&["db-url", "feature-flags", "log-level"])), "withDecryption": true})
        }
        Names::Key => {
            json!({"keyId": arn("kms", format!("key/{}", random.uuid())), "encryptionAlgorithm": "SYMMETRIC_DEFAULT"})
        }
        Names::Role => {
            let role = random.pick_skewed(&ROLES).0;
            json!({"roleArn": format!("arn:aws:iam::{account}:role/{role}"), "roleName": role, "roleSessionName": random.hex(12), "durationSeconds": 3600})
        }
        Names::Table => json!({"tableName": *random.pick(&["orders", "customers", "sessions", "inventory"])}),
        Names::LogGroup => {
            json!({"logGroupName": format!("/aws/{}/{}", random.pick(&["lambda", "ecs", "eks"]), random.pick(&["orders", "billing", "search"]))})
        }
        Names::Function => json!({"functionName": *random.pick(&["billing-invoice", "orders-webhook", "thumbnailer"])}),
        Names::Secret => {
            json!({"secretId": arn("secretsmanager", format!("secret:{}-{}", random.pick(&["orders/db", "billing/stripe", "search/es"]), random.hex(6)))})
        }
        Names::Stack => {
            json!({"stackName": format!("harborline-{}", random.pick(&["network", "orders", "billing", "observability"]))})
        }
        Names::Cluster => json!({"name": *random.pick(&["prod-eu-1", "prod-eu-2", "dev-1"])}),
    };
    (request, more)
}

/// What an event about an object of a bucket says beyond others: it is a data event, with the bytes that went out.
pub fn object_event(random: &mut Random, bucket: &str, account: &str, bytes_about: u64) -> Vec<(&'static str, Value)> {
    let bytes = random.between(bytes_about / 2, bytes_about * 2);
    vec![
        ("eventCategory", json!("Data")),
        (
            "additionalEventData",
            json!({"SignatureVersion": "SigV4", "CipherSuite": "TLS_AES_128_GCM_SHA256", "bytesTransferredIn": 0, "AuthenticationMethod": "AuthHeader", "bytesTransferredOut": bytes}),
        ),
        (
            "resources",
            json!([{"type": "AWS::S3::Object", "ARNPrefix": format!("arn:aws:s3:::{bucket}/")}, {"accountId": account, "type": "AWS::S3::Bucket", "ARN": format!("arn:aws:s3:::{bucket}")}]),
        ),
    ]
}

/// The browser of someone who is not one of the people.
pub const FOREIGN_BROWSER: &str =
    "Mozilla/5.0 (Windows NT 6.1; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/109.0.0.0 Safari/537.36";

/// The account of the takeover.
pub const TAKEN_ACCOUNT: &str = cast::ACCOUNTS[0].id;
