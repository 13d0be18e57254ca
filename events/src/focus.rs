//! The columns of FOCUS 1.2 (focus.finops.org, specification of 29 May 2025) in snake case, and the names that other
//! versions use for them. FOCUS 1.3 and 1.4 renamed `ProviderName` and `PublisherName`; 1.0 lacks some columns.

use arrow::datatypes::DataType;

use crate::dataset::timestamp_type;

/// Digits of a cost or quantity: 15 before and 15 after the point, so that the product of two of them still fits the 38
/// digits of an Arrow decimal with 8 digits before the point.
pub const DECIMAL_PRECISION: u8 = 30;
/// Digits after the point of a cost or quantity.
pub const DECIMAL_SCALE: i8 = 15;

/// What a FOCUS column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FocusKind {
    /// Money, prices and quantities: exact decimals, never floats.
    Decimal,
    /// ISO 8601 date and time, UTC.
    DateTime,
    /// Text.
    Text,
    /// A JSON object, kept as text; its keys are own fields too (`tags.team`).
    Json,
}

impl FocusKind {
    /// The Arrow type of the column.
    pub fn data_type(self) -> DataType {
        match self {
            Self::Decimal => DataType::Decimal128(DECIMAL_PRECISION, DECIMAL_SCALE),
            Self::DateTime => timestamp_type(),
            Self::Text | Self::Json => DataType::Utf8,
        }
    }
}

/// One FOCUS column.
#[derive(Debug, Clone, Copy)]
pub struct FocusColumn {
    /// The name of the core column, snake case.
    pub name: &'static str,
    /// The names in cost exports: first that of FOCUS 1.2, then those of other versions.
    pub focus_names: &'static [&'static str],
    /// What it holds.
    pub kind: FocusKind,
}

const fn column(name: &'static str, focus_names: &'static [&'static str], kind: FocusKind) -> FocusColumn {
    FocusColumn { name, focus_names, kind }
}

/// All columns of FOCUS 1.2, in the order of the specification's names.
pub fn columns() -> &'static [FocusColumn] {
    use FocusKind::{DateTime, Decimal, Json, Text};
    const COLUMNS: &[FocusColumn] = &[
        column("availability_zone", &["AvailabilityZone"], Text),
        column("billed_cost", &["BilledCost"], Decimal),
        column("billing_account_id", &["BillingAccountId"], Text),
        column("billing_account_name", &["BillingAccountName"], Text),
        column("billing_account_type", &["BillingAccountType"], Text),
        column("billing_currency", &["BillingCurrency"], Text),
        column("billing_period_end", &["BillingPeriodEnd"], DateTime),
        column("billing_period_start", &["BillingPeriodStart"], DateTime),
        column("capacity_reservation_id", &["CapacityReservationId"], Text),
        column("capacity_reservation_status", &["CapacityReservationStatus"], Text),
        column("charge_category", &["ChargeCategory"], Text),
        column("charge_class", &["ChargeClass"], Text),
        column("charge_description", &["ChargeDescription"], Text),
        column("charge_frequency", &["ChargeFrequency"], Text),
        column("charge_period_end", &["ChargePeriodEnd"], DateTime),
        column("charge_period_start", &["ChargePeriodStart"], DateTime),
        column("commitment_discount_category", &["CommitmentDiscountCategory"], Text),
        column("commitment_discount_id", &["CommitmentDiscountId"], Text),
        column("commitment_discount_name", &["CommitmentDiscountName"], Text),
        column("commitment_discount_quantity", &["CommitmentDiscountQuantity"], Decimal),
        column("commitment_discount_status", &["CommitmentDiscountStatus"], Text),
        column("commitment_discount_type", &["CommitmentDiscountType"], Text),
        column("commitment_discount_unit", &["CommitmentDiscountUnit"], Text),
        column("consumed_quantity", &["ConsumedQuantity"], Decimal),
        column("consumed_unit", &["ConsumedUnit"], Text),
        column("contracted_cost", &["ContractedCost"], Decimal),
        column("contracted_unit_price", &["ContractedUnitPrice"], Decimal),
        column("effective_cost", &["EffectiveCost"], Decimal),
        column("invoice_id", &["InvoiceId"], Text),
        column("invoice_issuer_name", &["InvoiceIssuerName"], Text),
        column("list_cost", &["ListCost"], Decimal),
        column("list_unit_price", &["ListUnitPrice"], Decimal),
        column("pricing_category", &["PricingCategory"], Text),
        column("pricing_currency", &["PricingCurrency"], Text),
        column("pricing_currency_contracted_unit_price", &["PricingCurrencyContractedUnitPrice"], Decimal),
        column("pricing_currency_effective_cost", &["PricingCurrencyEffectiveCost"], Decimal),
        column("pricing_currency_list_unit_price", &["PricingCurrencyListUnitPrice"], Decimal),
        column("pricing_quantity", &["PricingQuantity"], Decimal),
        column("pricing_unit", &["PricingUnit"], Text),
        column("provider_name", &["ProviderName", "ServiceProviderName"], Text),
        column("publisher_name", &["PublisherName", "HostProviderName"], Text),
        column("region_id", &["RegionId"], Text),
        column("region_name", &["RegionName"], Text),
        column("resource_id", &["ResourceId"], Text),
        column("resource_name", &["ResourceName"], Text),
        column("resource_type", &["ResourceType"], Text),
        column("service_category", &["ServiceCategory"], Text),
        column("service_name", &["ServiceName"], Text),
        column("service_subcategory", &["ServiceSubcategory"], Text),
        column("sku_id", &["SkuId"], Text),
        column("sku_meter", &["SkuMeter"], Text),
        column("sku_price_details", &["SkuPriceDetails"], Json),
        column("sku_price_id", &["SkuPriceId"], Text),
        column("sub_account_id", &["SubAccountId"], Text),
        column("sub_account_name", &["SubAccountName"], Text),
        column("sub_account_type", &["SubAccountType"], Text),
        column("tags", &["Tags"], Json),
    ];
    COLUMNS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn focus_1_2_has_57_columns_in_order() {
        let names: Vec<_> = columns().iter().map(|column| column.name).collect();
        assert_eq!(names.len(), 57);
        assert!(names.is_sorted());
    }

    #[test]
    fn snake_case_is_that_of_the_focus_name() {
        for column in columns() {
            let mut snake = String::new();
            for (at, letter) in column.focus_names[0].char_indices() {
                if letter.is_uppercase() && at > 0 {
                    snake.push('_');
                }
                snake.extend(letter.to_lowercase());
            }
            assert_eq!(snake, column.name);
        }
    }
}
