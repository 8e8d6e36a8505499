//! The table's definition, for the local stack and for tests. On AWS the template makes the table; both must agree.

use aws_sdk_dynamodb::{
    Client,
    types::{
        AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection,
        ProjectionType, ScalarAttributeType, StreamSpecification, StreamViewType, TimeToLiveSpecification,
    },
};

use super::{StoreError, service_error};

/// The index of the rows to which something is owed.
pub const DUE_INDEX: &str = "due";
/// How many partitions that index is spread over.
pub const DUE_SHARDS: u32 = 8;

/// Makes the table with its stream, index and expiry, unless it is there.
///
/// # Errors
/// When the service refuses or cannot be reached.
pub async fn create_table(client: &Client, table: &str) -> Result<(), StoreError> {
    let invalid = |error: aws_sdk_dynamodb::error::BuildError| StoreError::Corrupt(error.to_string());
    let attribute = |name: &str, kind| {
        AttributeDefinition::builder()
            .attribute_name(name)
            .attribute_type(kind)
            .build()
            .map_err(invalid)
    };
    let element = |name: &str, kind| {
        KeySchemaElement::builder()
            .attribute_name(name)
            .key_type(kind)
            .build()
            .map_err(invalid)
    };
    let due = GlobalSecondaryIndex::builder()
        .index_name(DUE_INDEX)
        .key_schema(element("dueShard", KeyType::Hash)?)
        .key_schema(element("dueAt", KeyType::Range)?)
        .projection(
            Projection::builder()
                .projection_type(ProjectionType::KeysOnly)
                .build(),
        )
        .build()
        .map_err(invalid)?;
    let stream = StreamSpecification::builder()
        .stream_enabled(true)
        .stream_view_type(StreamViewType::NewAndOldImages)
        .build()
        .map_err(invalid)?;
    let created = client
        .create_table()
        .table_name(table)
        .billing_mode(BillingMode::PayPerRequest)
        .attribute_definitions(attribute("pk", ScalarAttributeType::S)?)
        .attribute_definitions(attribute("sk", ScalarAttributeType::S)?)
        .attribute_definitions(attribute("dueShard", ScalarAttributeType::S)?)
        .attribute_definitions(attribute("dueAt", ScalarAttributeType::N)?)
        .key_schema(element("pk", KeyType::Hash)?)
        .key_schema(element("sk", KeyType::Range)?)
        .global_secondary_indexes(due)
        .stream_specification(stream)
        .send()
        .await;
    match created {
        Ok(_) => {}
        Err(error)
            if error
                .as_service_error()
                .is_some_and(|e| e.is_resource_in_use_exception()) =>
        {
            return Ok(());
        }
        Err(error) => return Err(service_error("CreateTable", &error)),
    }
    let expiry = TimeToLiveSpecification::builder()
        .enabled(true)
        .attribute_name("expiresAt")
        .build()
        .map_err(invalid)?;
    client
        .update_time_to_live()
        .table_name(table)
        .time_to_live_specification(expiry)
        .send()
        .await
        .map_err(|error| service_error("UpdateTimeToLive", &error))?;
    Ok(())
}
