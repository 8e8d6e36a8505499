//! What the wire models share: named enums, unions told apart by a tag, readers for defaults, and checks.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serializer};
use serde_json::Value;

use super::{Object, check};

/// An enum whose variants are fixed texts on the wire. Its `FromStr` error lists the texts.
macro_rules! names {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// Every value, in the contract's order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The text on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or_else(|| {
                    format!("must be one of the following values: {}", [$($text),+].join(", "))
                })
            }
        }
    };
}
pub(crate) use names;

/// A union whose variants are told apart by the text in one field. Faults inside a variant keep their path.
macro_rules! tagged {
    ($(#[$meta:meta])* $name:ident by $tag:literal {
        $($(#[$variant_meta:meta])* $variant:ident($inner:ty) = $text:literal),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, schemars::JsonSchema)]
        #[serde(tag = $tag)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $text)] $variant($inner)),+
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let mut object = $crate::models::Object::deserialize(input)?;
                let tag = object.remove($tag);
                match tag.as_ref().and_then(serde_json::Value::as_str) {
                    $(Some($text) => $crate::models::kinds::inner(object).map(Self::$variant),)+
                    _ => Err(serde::de::Error::custom(format!(
                        concat!($tag, " must be one of the following values: {}"),
                        [$($text),+].join(", ")
                    ))),
                }
            }
        }
    };
}
pub(crate) use tagged;

/// Reads the content of a union's variant; a fault begins with its path inside the variant.
pub(crate) fn inner<T: DeserializeOwned, E: Error>(object: Object) -> Result<T, E> {
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|fault| {
        let path = fault.path().to_string();
        let inner = fault.into_inner();
        if path == "." || path == "?" {
            E::custom(inner)
        } else {
            E::custom(format!("{path}: {inner}"))
        }
    })
}

/// The default of a flag that is on unless switched off.
pub(crate) const fn yes() -> bool {
    true
}

/// Reads a flag that is on unless switched off; `null` is the default.
pub(crate) fn on<'de, D: Deserializer<'de>>(input: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or(true))
}

/// Reads a flag that is off unless switched on; `null` is the default.
pub(crate) fn off<'de, D: Deserializer<'de>>(input: D) -> Result<bool, D::Error> {
    or_default(input)
}

/// Reads a value for which `null` means the default.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// Reads a whole number for which absence and `null` mean zero.
pub(crate) fn integer_or_default<'de, D: Deserializer<'de>>(input: D) -> Result<i64, D::Error> {
    Ok(super::lenient::optional_integer(input)?.unwrap_or_default())
}

/// [`lenient::number`](super::lenient::number) for an optional field.
#[expect(clippy::ref_option, reason = "serde's signature")]
pub(crate) fn optional_number<S: Serializer>(value: &Option<f64>, output: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => super::lenient::number(value, output),
        None => output.serialize_none(),
    }
}

/// An optional text must not be longer than `max` characters.
pub(crate) fn text(path: &str, field: &str, text: Option<&String>, max: usize, faults: &mut Vec<String>) {
    if let Some(text) = text {
        check::length(path, field, text, 0, max, faults);
    }
}

/// An optional id must be a UUID.
pub(crate) fn id(path: &str, field: &str, id: Option<&String>, faults: &mut Vec<String>) {
    if let Some(id) = id {
        check::uuid(path, field, id, faults);
    }
}

/// An optional number must be within `min..=max`.
pub(crate) fn range(
    path: &str,
    field: &str,
    value: Option<f64>,
    min: f64,
    max: f64,
    faults: &mut Vec<String>,
) {
    if let Some(value) = value {
        check::range(path, field, value, min, max, faults);
    }
}

/// A whole number as a float, for range checks.
#[expect(clippy::cast_precision_loss, reason = "the limits are small")]
pub(crate) fn float(value: i64) -> f64 {
    value as f64
}

/// An optional folder path must follow the pattern.
pub(crate) fn folder(path: &str, folder: Option<&String>, faults: &mut Vec<String>) {
    if let Some(folder) = folder {
        check::folder_path(path, "path", folder, faults);
    }
}

/// Exactly one of two fields must be given.
pub(crate) fn one_of(path: &str, first: (&str, bool), second: (&str, bool), faults: &mut Vec<String>) {
    match (first, second) {
        ((a, true), (b, true)) => {
            faults.push(format!("{} cannot be combined with {b}", check::join(path, a)));
        }
        ((a, false), (b, false)) => faults.push(format!("{} or {b} must be given", check::join(path, a))),
        _ => {}
    }
}
