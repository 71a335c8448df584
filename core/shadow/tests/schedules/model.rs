//! The specification on plain JSON, and the dice that make a schedule of a seed.

use std::collections::BTreeMap;

use outpost_shadow::Stamp;
use serde_json::{Map, Value, json};

/// xorshift64*: a schedule is its seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
    pub fn pick(&mut self, limit: usize) -> usize {
        self.below(limit as u64) as usize
    }
    pub fn state(&mut self) -> Value {
        match self.below(30) {
            0 => Value::Null,
            1 => json!({ "desired": null }),
            2..=16 => json!({ "desired": self.patch(0) }),
            17..=26 => json!({ "reported": self.patch(0) }),
            _ => json!({ "desired": self.patch(0), "reported": self.patch(0) }),
        }
    }
    fn patch(&mut self, depth: u32) -> Value {
        let mut fields = Map::new();
        for _ in 0..=self.below(2) {
            let key = ["color", "mode", "temp"][self.pick(3)];
            fields.insert(key.to_owned(), self.value(depth));
        }
        Value::Object(fields)
    }
    fn value(&mut self, depth: u32) -> Value {
        match self.below(8) {
            0 | 1 => Value::Null,
            2 => json!([self.below(3), self.below(3)]),
            3 | 4 if depth < 3 => self.patch(depth + 1),
            _ => json!(self.below(50)),
        }
    }
}

/// What the accepted writes give: stamp by stamp on a plain tree, `desired` without the home's term. `None` deletes, and
/// takes away whatever is earlier, also what a later home was told.
pub fn state_of(written: &BTreeMap<Stamp, Option<Value>>) -> Value {
    let plain = |stamp: &Stamp| stamp.with_term(0);
    let last = |deletes: bool| {
        written.iter().filter(|(_, w)| w.is_none() == deletes).map(|(s, _)| plain(s)).max()
    };
    let (touched, deleted) = (last(false), last(true));
    if touched <= deleted {
        return Value::Null;
    }
    let mut root = json!({ "desired": {}, "reported": {} });
    for (section, keep_term) in [("desired", false), ("reported", true)] {
        let mut order: Vec<(Stamp, &Option<Value>)> =
            written.iter().map(|(s, w)| (if keep_term { *s } else { plain(s) }, w)).collect();
        order.sort_by_key(|(stamp, _)| *stamp);
        for (stamp, state) in order {
            match state {
                None | Some(Value::Null) => root[section] = json!({}),
                Some(state) => {
                    let Some(patch) = state.get(section) else { continue };
                    if Some(plain(&stamp)) < deleted {
                        apply(&mut root[section], &nulled(patch));
                    } else {
                        apply(&mut root[section], patch);
                    }
                }
            }
        }
    }
    prune(&mut root);
    root
}

/// The same fields, all to be taken away.
fn nulled(patch: &Value) -> Value {
    match patch {
        Value::Object(fields) => fields.iter().map(|(k, v)| (k.clone(), nulled(v))).collect(),
        _ => Value::Null,
    }
}

fn apply(place: &mut Value, patch: &Value) {
    match patch {
        Value::Null => *place = json!({}),
        Value::Object(fields) => {
            for (key, value) in fields {
                if !place.is_object() {
                    *place = json!({});
                }
                let object = place.as_object_mut().expect("made one");
                if value.is_null() {
                    object.remove(key);
                } else {
                    apply(object.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        value => *place = value.clone(),
    }
}

/// Empty objects do not exist.
fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(prune);
        fields.retain(|_, value| value.as_object().is_none_or(|fields| !fields.is_empty()));
    }
}

/// What `desired` wants and `reported` does not show.
pub fn difference(desired: &Value, reported: &Value) -> Option<Value> {
    match (desired, reported) {
        (Value::Null, _) => None,
        (wanted, shown) if wanted == shown => None,
        (Value::Object(wanted), Value::Object(shown)) => {
            let fields: Map<String, Value> = wanted
                .iter()
                .filter_map(|(key, value)| {
                    let shown = shown.get(key).unwrap_or(&Value::Null);
                    Some((key.clone(), difference(value, shown)?))
                })
                .collect();
            (!fields.is_empty()).then_some(Value::Object(fields))
        }
        (wanted, _) => Some(wanted.clone()),
    }
}

/// The state is what the patch says, as far as the patch says something.
pub fn shows(state: &Value, patch: &Value) -> bool {
    match patch {
        Value::Null => state.is_null() || state.as_object().is_some_and(Map::is_empty),
        Value::Object(fields) => fields.iter().all(|(key, value)| shows(&state[key], value)),
        value => state == value,
    }
}
