//! A page of a list.

use serde::{Deserialize, Serialize};

use super::{Object, kinds, lenient};

kinds::names! {
    /// The order of a list by creation time.
    #[derive(Default)]
    SortOrder {
        /// Oldest first.
        Ascending = "ASC",
        /// Newest first.
        #[default]
        Descending = "DESC",
    }
}

/// Where a page stands in its list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaginationMeta {
    /// The page size asked for.
    #[serde(deserialize_with = "lenient::integer")]
    pub items_per_page: i64,
    /// Items in the whole list.
    #[serde(deserialize_with = "lenient::integer")]
    pub total_items: i64,
    /// The page's number, from 1.
    #[serde(deserialize_with = "lenient::integer")]
    pub current_page: i64,
    /// Pages in the whole list.
    #[serde(
        default,
        deserialize_with = "lenient::optional_integer",
        skip_serializing_if = "Option::is_none"
    )]
    pub total_pages: Option<i64>,
    /// Whether a page follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_next_page: Option<bool>,
    /// Opaque key of the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// The order the items are in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort_order: Option<SortOrder>,
    /// Whether older items exist that are no longer kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items_beyond_retention: Option<bool>,
    /// Latest creation time in the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_le: Option<String>,
    /// Earliest creation time in the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_ge: Option<String>,
    /// Fields that are not modelled.
    #[serde(flatten)]
    pub extra: Object,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Page<T> {
    /// The items of this page.
    pub results: Vec<T>,
    /// Where the page stands in the list.
    pub metadata: PaginationMeta,
}
