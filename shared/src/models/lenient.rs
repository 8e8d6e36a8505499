//! Readers for what real clients send: whole numbers as floats, one value where a list is meant, `null` for "clear this".

use serde::{Deserialize, Deserializer, Serializer, de};

/// Reads a whole number that may be written as a float with no fraction (`50.0`), as the Python SDK does.
///
/// # Errors
/// A fraction, a number outside `i64`, or another type.
pub fn integer<'de, D: Deserializer<'de>>(input: D) -> Result<i64, D::Error> {
    from_number(&serde_json::Number::deserialize(input)?)
}

/// [`integer`] for an optional field; `null` reads as absent.
///
/// # Errors
/// As [`integer`].
pub fn optional_integer<'de, D: Deserializer<'de>>(input: D) -> Result<Option<i64>, D::Error> {
    Option::<serde_json::Number>::deserialize(input)?
        .as_ref()
        .map(from_number)
        .transpose()
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
fn from_number<E: de::Error>(number: &serde_json::Number) -> Result<i64, E> {
    if let Some(whole) = number.as_i64() {
        return Ok(whole);
    }
    match number.as_f64() {
        // 2^53: above it a float no longer names one whole number.
        Some(float) if float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0 => Ok(float as i64),
        _ => Err(E::custom(format!("{number} must be an integer number"))),
    }
}

/// Tells an absent field (`None`) from `null` (`Some(None)`), for PATCH bodies in which `null` clears a value.
///
/// # Errors
/// As the value's own reader.
pub fn nullable<'de, D, T>(input: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(input).map(Some)
}

/// Reads a whole number where absence and `null` mean different things, as [`nullable`] does.
///
/// # Errors
/// When it is no whole number.
pub fn nullable_integer<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Option<i64>>, D::Error> {
    optional_integer(input).map(Some)
}

/// Writes a number without a fraction as an integer (`3`, not `3.0`), as clients that compare text expect.
///
/// # Errors
/// As the serializer.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
pub fn number<S: Serializer>(value: &f64, output: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
        output.serialize_i64(*value as i64)
    } else {
        output.serialize_f64(*value)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Deserialize, Serialize)]
    struct Probe {
        #[serde(default, deserialize_with = "super::optional_integer")]
        n: Option<i64>,
        #[serde(default, deserialize_with = "super::nullable")]
        path: Option<Option<String>>,
    }

    #[test]
    fn whole_floats_are_integers_and_null_is_told_from_absent() {
        let read = |text: &str| serde_json::from_str::<Probe>(text);
        assert_eq!(read(r#"{"n": 50.0}"#).unwrap().n, Some(50));
        assert_eq!(read(r#"{"n": 50}"#).unwrap().n, Some(50));
        assert_eq!(read(r#"{"n": null}"#).unwrap().n, None);
        assert!(read(r#"{"n": 50.5}"#).is_err());
        assert!(read(r#"{"n": 1e300}"#).is_err());
        assert_eq!(read("{}").unwrap().path, None);
        assert_eq!(read(r#"{"path": null}"#).unwrap().path, Some(None));
        assert_eq!(read(r#"{"path": "a/b"}"#).unwrap().path, Some(Some("a/b".into())));
    }
}
