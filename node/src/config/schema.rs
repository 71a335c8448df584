//! What a configuration key is: its kind, its limits, its words. One declaration gives struct, default, check and manual.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The shape a value must have.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number within both ends.
    Integer {
        /// Smallest allowed.
        min: i64,
        /// Largest allowed.
        max: i64,
    },
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An IP address and a port.
    Address,
    /// A path of a file or directory.
    Path,
    /// A list of texts.
    Texts,
    /// A table of further keys.
    Section(fn() -> Vec<Field>),
    /// Any number of tables, `[[like.this]]`.
    Entries(fn() -> Vec<Field>),
}

impl Kind {
    /// The kind in words, as the reference and error messages say it.
    pub fn words(&self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Integer { min, max } => format!("a whole number, {min} to {max}"),
            Self::Text => "a text".into(),
            Self::Choice(words) => {
                let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
                quoted.join(" or ")
            }
            Self::Address => "an IP address with a port, like \"127.0.0.1:1883\"".into(),
            Self::Path => "a path".into(),
            Self::Texts => "a list of texts, like [\"a\", \"b\"]".into(),
            Self::Section(_) => "a table".into(),
            Self::Entries(_) => "a list of tables".into(),
        }
    }
}

/// What a declaration says beyond type and default.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// Narrower than the type allows.
    Range(i64, i64),
    /// Must be given: the default is of no use.
    Required,
}

/// One key.
#[derive(Debug, Clone)]
pub struct Field {
    /// Its name within its section.
    pub key: &'static str,
    /// Its documentation, one line each.
    pub doc: &'static [&'static str],
    /// What it takes.
    pub kind: Kind,
    /// There is no useful default.
    pub required: bool,
}

impl Field {
    /// Applies what the declaration adds to the type.
    #[must_use]
    pub fn with(mut self, rules: &[Rule]) -> Self {
        for rule in rules {
            match rule {
                Rule::Range(min, max) => self.kind = Kind::Integer { min: *min, max: *max },
                Rule::Required => self.required = true,
            }
        }
        self
    }
}

/// A type that can stand behind a key.
pub trait Setting {
    /// Its kind.
    fn kind() -> Kind;
}

macro_rules! simple_settings {
    ($($ty:ty => $kind:expr;)+) => { $(impl Setting for $ty { fn kind() -> Kind { $kind } })+ };
}
simple_settings! {
    bool => Kind::Bool;
    u16 => Kind::Integer { min: 0, max: 0xffff };
    u32 => Kind::Integer { min: 0, max: 0xffff_ffff };
    usize => Kind::Integer { min: 0, max: i64::MAX };
    String => Kind::Text;
    PathBuf => Kind::Path;
    SocketAddr => Kind::Address;
    Vec<String> => Kind::Texts;
}

impl<T: Setting> Setting for Option<T> {
    fn kind() -> Kind {
        T::kind()
    }
}

/// Declares a section: the struct, its default, and its list of [`Field`]s for checking and for the manual.
macro_rules! section {
    ($(#[doc = $about:literal])+ pub struct $name:ident {
        $($(#[doc = $doc:literal])+ pub $key:ident: $ty:ty = $default:expr $(, if $rule:expr)*;)+
    }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[doc = $doc])+ pub $key: $ty,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl $name {
            /// Its keys.
            pub fn fields() -> Vec<$crate::config::schema::Field> {
                vec![$($crate::config::schema::Field {
                    key: stringify!($key),
                    doc: &[$($doc),+],
                    kind: <$ty as $crate::config::schema::Setting>::kind(),
                    required: false,
                }.with(&[$($rule),*])),+]
            }
        }

        impl $crate::config::schema::Setting for $name {
            fn kind() -> $crate::config::schema::Kind {
                $crate::config::schema::Kind::Section($name::fields)
            }
        }

        impl $crate::config::schema::Setting for Vec<$name> {
            fn kind() -> $crate::config::schema::Kind {
                $crate::config::schema::Kind::Entries($name::fields)
            }
        }
    };
}

/// Declares a setting that is one of a few words.
macro_rules! choice {
    ($(#[doc = $about:literal])+ pub enum $name:ident { $($(#[$meta:meta])+ $variant:ident = $word:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$meta])+ #[serde(rename = $word)] $variant,)+ }

        impl $crate::config::schema::Setting for $name {
            fn kind() -> $crate::config::schema::Kind {
                $crate::config::schema::Kind::Choice(&[$($word),+])
            }
        }
    };
}

pub(crate) use {choice, section};
