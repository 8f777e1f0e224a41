//! Tables in Parquet (`.parquet`), a batch of rows at a time.

use super::columnar::{Table, reads};
use super::{Format, Reader, Sink};
use crate::file_kind::Kind;
use crate::train::data::DataError;
use crate::train::data::input::Input;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

pub const FORMAT: Format =
    Format { extensions: &["parquet", "pq"], holds: |kind| *kind == Kind::Parquet, reader: Reader::Rows(rows) };

/// Rows that are decoded at once.
const ROWS: usize = 1024;

fn rows(input: &Input, sink: &mut dyn Sink) -> Result<(), DataError> {
    let bad = |why: String| DataError::Format { path: input.path.clone(), why };
    let damaged = |e: &dyn std::fmt::Display| {
        bad(format!("it is no Parquet file, or a damaged one: {e}\nhint: copy or download it again, or write it again"))
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new(input.seekable()?).map_err(|e| damaged(&e))?;
    let mut table = Table::new(input, builder.schema(), sink)?;
    // What no one reads is not decoded.
    let columns = builder.schema().fields().iter().enumerate();
    let wanted: Vec<usize> = columns.filter(|(_, f)| reads(f.name(), sink)).map(|(i, _)| i).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
    let reader = builder.with_projection(mask).with_batch_size(ROWS).build().map_err(|e| damaged(&e))?;
    for batch in reader {
        table.rows(&batch.map_err(|e| damaged(&e))?, sink)?;
    }
    Ok(())
}
