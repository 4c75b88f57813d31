//! Reports: from the rows of a comparison to what people read. Pure: no device, no clock, no file.

pub mod read;
pub mod rows;

pub use read::{Rows, RowsError};
