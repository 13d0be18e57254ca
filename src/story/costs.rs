//! FOCUS 1.2 rows: the hourly bill of the organisation, and the part of it that runs away.

use serde_json::{Value, json};

use super::cast::{ACCOUNTS, Account, PAYER, QUIET_REGION, REGIONS};
use super::random::Random;
use super::time::{HOUR, month, seconds};

/// Something that costs by the hour.
#[derive(Debug, Clone)]
struct Charged {
    account: Account,
    region: (&'static str, &'static str),
    service: &'static str,
    category: &'static str,
    resource: String,
    kind: &'static str,
    sku: &'static str,
    unit: &'static str,
    description: &'static str,
    application: &'static str,
    team: &'static str,
    /// Billionths of a dollar for one unit: prices are exact.
    price_nano: u64,
    /// Thousandths of a unit an hour on an average day.
    milli_units: u64,
}

type Sku = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str, u64, u64);

/// service, category, resource type, sku, unit, description, price in billionths, usual thousandths of a unit an hour.
const SKUS: [Sku; 12] = [
    (
        "Amazon Elastic Compute Cloud",
        "Compute",
        "m7i.xlarge",
        "EUN1-BoxUsage:m7i.xlarge",
        "Hrs",
        "$0.2142 per On Demand Linux m7i.xlarge Instance Hour",
        214_200_000,
        1_000,
    ),
    (
        "Amazon Elastic Compute Cloud",
        "Compute",
        "c7g.2xlarge",
        "EUN1-BoxUsage:c7g.2xlarge",
        "Hrs",
        "$0.3016 per On Demand Linux c7g.2xlarge Instance Hour",
        301_600_000,
        1_000,
    ),
    (
        "Amazon Simple Storage Service",
        "Storage",
        "Bucket",
        "EUN1-TimedStorage-ByteHrs",
        "GB-Mo",
        "$0.023 per GB - first 50 TB / month of storage used",
        23_000_000,
        9_400,
    ),
    (
        "Amazon Relational Database Service",
        "Databases",
        "db.r7g.large",
        "EUN1-InstanceUsage:db.r7g.large",
        "Hrs",
        "$0.276 per db.r7g.large Multi-AZ instance hour",
        276_000_000,
        1_000,
    ),
    (
        "AWS Lambda",
        "Compute",
        "Function",
        "EUN1-Lambda-GB-Second",
        "Lambda-GB-Second",
        "AWS Lambda - Total Compute - Europe (Stockholm)",
        16_667,
        5_200_000,
    ),
    (
        "AWS Data Transfer",
        "Networking",
        "Data Transfer",
        "EUN1-DataTransfer-Out-Bytes",
        "GB",
        "$0.09 per GB - first 10 TB / month data transfer out",
        90_000_000,
        14_000,
    ),
    (
        "Amazon Elastic Container Service for Kubernetes",
        "Compute",
        "Cluster",
        "EUN1-AmazonEKS-Hours:perCluster",
        "Hours",
        "Amazon EKS cluster usage in EU (Stockholm)",
        100_000_000,
        1_000,
    ),
    (
        "AmazonCloudWatch",
        "Management and Governance",
        "Metrics",
        "EUN1-CW:MetricMonitorUsage",
        "Metrics",
        "$0.30 per metric-month for the first 10,000 metrics",
        300_000_000,
        3_600,
    ),
    (
        "AWS Key Management Service",
        "Security",
        "Key",
        "EUN1-KMS-Requests",
        "Requests",
        "$0.03 per 10000 KMS requests",
        3_000,
        21_000_000,
    ),
    (
        "Amazon DynamoDB",
        "Databases",
        "Table",
        "EUN1-WriteRequestUnits",
        "WriteRequestUnits",
        "$1.3942 per million write request units",
        1_394,
        310_000_000,
    ),
    (
        "Elastic Load Balancing",
        "Networking",
        "Load Balancer",
        "EUN1-LCUUsage",
        "LCU-Hrs",
        "$0.0084 per Application LoadBalancer LCU-hour",
        8_400_000,
        26_000,
    ),
    (
        "Amazon Simple Queue Service",
        "Integration",
        "Queue",
        "EUN1-Requests-Tier1",
        "Requests",
        "$0.40 per million Amazon SQS standard requests",
        400,
        4_100_000,
    ),
];

/// Team and application, as tags say.
const TEAMS: [(&str, &str); 5] = [
    ("orders", "checkout"),
    ("billing", "invoicing"),
    ("platform", "kubernetes"),
    ("data", "lakehouse"),
    ("search", "indexer"),
];

/// The bill: what costs, and when the runaway began.
#[derive(Debug, Clone)]
pub struct Bill {
    charged: Vec<Charged>,
    runaway_from: i64,
}

impl Bill {
    /// A bill of `resources` things; from `runaway_from` (µs) on, somebody else's GPUs are on it.
    pub fn new(random: &mut Random, resources: usize, runaway_from: i64) -> Self {
        let charged = (0..resources).map(|number| charged(random, number)).collect();
        Self { charged, runaway_from }
    }

    /// The rows of the hour that starts at `hour` (µs).
    pub fn rows(&self, random: &mut Random, hour: i64) -> Vec<String> {
        let mut rows: Vec<String> = self.charged.iter().map(|charged| self.usual(random, charged, hour)).collect();
        for gpu in 0..gpus(hour, self.runaway_from) {
            let units = if gpu + GPUS_MORE_EACH_HOUR >= gpus(hour, self.runaway_from) {
                random.between(300, 900)
            } else {
                1_000
            };
            rows.push(row(&gpu_charge(gpu), hour, units));
        }
        rows
    }

    /// More by day than by night, never twice the same.
    fn usual(&self, random: &mut Random, charged: &Charged, hour: i64) -> String {
        let by_day = if (7..19).contains(&(hour / HOUR).rem_euclid(24)) { 1_150 } else { 850 };
        let swing = if charged.unit.starts_with("Hr") || charged.unit == "Hours" {
            1_000
        } else {
            by_day * random.between(900, 1_100) / 1_000
        };
        row(charged, hour, charged.milli_units * swing / 1_000)
    }
}

const GPUS_MORE_EACH_HOUR: u64 = 2;

/// How many GPU machines run in an hour: two more each hour since the intruder came.
fn gpus(hour: i64, from: i64) -> u64 {
    let hours = (hour + HOUR - from).div_euclid(HOUR).max(0) as u64;
    hours * GPUS_MORE_EACH_HOUR
}

fn charged(random: &mut Random, number: usize) -> Charged {
    let (service, category, kind, sku, unit, description, price_nano, milli_units) = SKUS[number % SKUS.len()];
    let account = *random.pick_skewed(&ACCOUNTS);
    let region = *random.pick_skewed(&REGIONS);
    let (team, application) = *random.pick(&TEAMS);
    let resource = format!("arn:aws:{}:{}:{}:{}", arn_word(service), region.0, account.id, random.hex(17));
    let milli_units = milli_units * random.between(300, 1_700) / 1_000;
    let milli_units = if unit.starts_with('H') { 1_000 } else { milli_units };
    Charged {
        account,
        region,
        service,
        category,
        resource,
        kind,
        sku,
        unit,
        description,
        application,
        team,
        price_nano,
        milli_units,
    }
}

fn gpu_charge(number: u64) -> Charged {
    Charged {
        account: ACCOUNTS[0],
        region: QUIET_REGION,
        service: "Amazon Elastic Compute Cloud",
        category: "Compute",
        resource: format!(
            "arn:aws:ec2:{}:{}:instance/i-0{}",
            QUIET_REGION.0,
            ACCOUNTS[0].id,
            Random::new(number).hex(16)
        ),

        kind: "p5.48xlarge",
        sku: "APN3-BoxUsage:p5.48xlarge",
        unit: "Hrs",
        description: "$98.32 per On Demand Linux p5.48xlarge Instance Hour",
        application: "",
        team: "",
        price_nano: 98_320_000_000,
        milli_units: 1_000,
    }
}

fn arn_word(service: &str) -> &'static str {
    match service {
        "Amazon Simple Storage Service" => "s3",
        "Amazon Relational Database Service" => "rds",
        "AWS Lambda" => "lambda",
        "Amazon DynamoDB" => "dynamodb",
        "Amazon Simple Queue Service" => "sqs",
        "AWS Key Management Service" => "kms",
        "Elastic Load Balancing" => "elasticloadbalancing",
        _ => "ec2",
    }
}

/// One row, its decimals as text: a JSON number would pass through a float somewhere.
fn row(charged: &Charged, hour: i64, milli_units: u64) -> String {
    let cost = decimal(u128::from(charged.price_nano) * u128::from(milli_units), 12);
    let units = decimal(u128::from(milli_units), 3);
    let price = decimal(u128::from(charged.price_nano), 9);
    let (period_start, period_end) = month(hour);
    let tags = match charged.team {
        "" => Value::Null,
        team => json!(
            json!({"team": team, "application": charged.application, "environment": charged.account.environment})
                .to_string()
        ),
    };
    json!({
        "AvailabilityZone": null,
        "BilledCost": cost,
        "BillingAccountId": PAYER,
        "BillingAccountName": "Harborline",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": period_end,
        "BillingPeriodStart": period_start,
        "ChargeCategory": "Usage",
        "ChargeClass": null,
        "ChargeDescription": charged.description,
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": seconds(hour + HOUR),
        "ChargePeriodStart": seconds(hour),
        "ConsumedQuantity": units,
        "ConsumedUnit": charged.unit,
        "ContractedCost": cost,
        "ContractedUnitPrice": price,
        "EffectiveCost": cost,
        "InvoiceIssuerName": "Amazon Web Services, Inc.",
        "ListCost": cost,
        "ListUnitPrice": price,
        "PricingCategory": "Standard",
        "PricingQuantity": units,
        "PricingUnit": charged.unit,
        "ProviderName": "AWS",
        "PublisherName": "Amazon Web Services, Inc.",
        "RegionId": charged.region.0,
        "RegionName": charged.region.1,
        "ResourceId": charged.resource,
        "ResourceName": null,
        "ResourceType": charged.kind,
        "ServiceCategory": charged.category,
        "ServiceName": charged.service,
        "SkuId": charged.sku,
        "SkuMeter": charged.sku,
        "SubAccountId": charged.account.id,
        "SubAccountName": charged.account.name,
        "Tags": tags,
    })
    .to_string()
}

/// `units` of 10^-`places`, as text without an exponent or trailing zeros.
fn decimal(units: u128, places: usize) -> String {
    let digits = format!("{units:0>width$}", width = places + 1);
    let (whole, fraction) = digits.split_at(digits.len() - places);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        for (units, places, wanted) in
            [(0, 3, "0"), (1_500, 3, "1.5"), (7, 12, "0.000000000007"), (98_320_000_000, 9, "98.32"), (12, 0, "12")]
        {
            assert_eq!(decimal(units, places), wanted);
        }
    }

    #[test]
    fn the_gpu_bill_grows_by_the_hour_from_its_begin_on() {
        let from = 1_000 * HOUR + 20 * 60_000_000;
        let counts: Vec<u64> = (998..1_005).map(|hour| gpus(hour * HOUR, from)).collect();
        assert_eq!(counts, [0, 0, 0, 2, 4, 6, 8]);
    }
}
