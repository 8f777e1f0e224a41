//! Arrow's own files (`.arrow`): streams, as `datasets` keeps them, and files with a footer (Feather 2).

use super::columnar::Table;
use super::{Format, Reader, Sink};
use crate::file_kind::Kind;
use crate::train::data::DataError;
use crate::train::data::input::Input;
use arrow_ipc::reader::{FileReader, StreamReader};
use std::io::{BufReader, Read, Seek, SeekFrom};

pub const FORMAT: Format =
    Format { extensions: &["arrow", "feather"], holds: |kind| *kind == Kind::Parquet, reader: Reader::Rows(rows) };

fn rows(input: &Input, sink: &mut dyn Sink) -> Result<(), DataError> {
    let bad = |why: String| DataError::Format { path: input.path.clone(), why };
    let damaged = |e| bad(format!("it is no Arrow file, or a damaged one: {e}\nhint: write it again"));
    let mut file = input.seekable()?;
    let mut magic = [0; 6];
    let has_footer = file.rewind().and_then(|()| file.read_exact(&mut magic)).is_ok() && &magic == b"ARROW1";
    file.seek(SeekFrom::Start(0)).map_err(|e| input.error(&e))?;
    let file = BufReader::with_capacity(1 << 20, file);
    if has_footer {
        let reader = FileReader::try_new(file, None).map_err(damaged)?;
        let mut table = Table::new(input, &reader.schema(), sink)?;
        reader.into_iter().try_for_each(|batch| table.rows(&batch.map_err(damaged)?, sink))
    } else {
        let reader = StreamReader::try_new(file, None).map_err(damaged)?;
        let mut table = Table::new(input, &reader.schema(), sink)?;
        reader.into_iter().try_for_each(|batch| table.rows(&batch.map_err(damaged)?, sink))
    }
}
