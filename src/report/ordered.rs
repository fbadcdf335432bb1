//! A map that keeps the order in which its entries were made: stages in the order they ran, metrics main one first.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names with values, in order of insertion; a JSON object. Setting a name again replaces its value in place.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordered<T>(Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Ordered(Vec::new())
    }
}

impl<T> Ordered<T> {
    /// Sets `name` to `value`.
    pub fn set(&mut self, name: impl Into<String>, value: T) {
        let name = name.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name, value)),
        }
    }
    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
    /// Names and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &T)> + Clone {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T, N: Into<String>> FromIterator<(N, T)> for Ordered<T> {
    fn from_iter<I: IntoIterator<Item = (N, T)>>(entries: I) -> Self {
        let mut map = Ordered::default();
        entries.into_iter().for_each(|(name, value)| map.set(name, value));
        map
    }
}

impl<T: Serialize> Serialize for Ordered<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Ordered<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Ordered<T>, A::Error> {
                let mut map = Ordered::default();
                while let Some((name, value)) = access.next_entry::<String, T>()? {
                    map.set(name, value);
                }
                Ok(map)
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Reads metrics: JSON has no NaN, so an undefined one was written as null.
pub(super) fn undefined_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ordered<f64>, D::Error> {
    let metrics = Ordered::<Option<f64>>::deserialize(deserializer)?;
    Ok(metrics.0.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_json() {
        let mut map: Ordered<u32> = [("zeta", 1), ("alpha", 2)].into_iter().collect();
        map.set("zeta", 3);
        let text = serde_json::to_string(&map).unwrap();
        assert_eq!(text, r#"{"zeta":3,"alpha":2}"#);
        assert_eq!(serde_json::from_str::<Ordered<u32>>(&text).unwrap(), map);
    }

    #[test]
    fn undefined_metrics_are_read_back() {
        #[derive(Serialize, Deserialize)]
        struct Record(#[serde(deserialize_with = "undefined_as_nan")] Ordered<f64>);
        let text =
            serde_json::to_string(&Record([("pearson", f64::NAN), ("accuracy", 0.5)].into_iter().collect()));
        let Record(read) = serde_json::from_str(&text.unwrap()).unwrap();
        assert!(read.get("pearson").is_some_and(|value| value.is_nan()));
        assert_eq!(read.get("accuracy"), Some(&0.5));
    }
}
