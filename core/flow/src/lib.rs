//! How hard and how often: restarts, back-off, rate limits and timers.
//!
//! Plain decisions: the time is an argument (milliseconds of any clock that never goes back), and so are the dice.

pub mod admission;
pub mod backoff;
pub mod budget;
pub mod gather;
pub mod limits;
pub mod link;
pub mod load;
pub mod overload;
pub mod pace;
pub mod quota;
pub mod restart;
pub mod share;
pub mod wheel;

pub use admission::{Admission, AdmissionLimits};
pub use backoff::Backoff;
pub use budget::{Budget, Class, Pressure};
pub use gather::Gather;
pub use limits::{Bucket, Rate};
pub use link::bytes_a_second;
pub use load::LoadAverage;
pub use overload::Overload;
pub use pace::{Pace, PaceLimits};
pub use quota::{Level, Quota, QuotaLimits};
pub use restart::{Health, RestartPolicy, RestartState, Verdict};
pub use share::TurnShare;
pub use wheel::Wheel;
