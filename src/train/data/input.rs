//! A data file as bytes or as text: unpacked if it is compressed, whatever its name, and in UTF-8.

use super::DataError;
use crate::file_kind;
use sha2::Digest;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Endings of compressed files, which stand behind that of the format.
pub const PACKED: &[&str] = &["gz", "gzip", "zst", "zstd"];

/// A data file that is there, and is no placeholder of one.
#[derive(Clone, Debug)]
pub struct Input {
    pub path: PathBuf,
    packing: Packing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Input {
    pub fn open(path: &Path) -> Result<Input, DataError> {
        let fail = |error| DataError::Open { path: path.to_path_buf(), error };
        let mut head = Vec::new();
        File::open(path).and_then(|f| f.take(1024).read_to_end(&mut head)).map_err(fail)?;
        if let Some(kind) = file_kind::in_place_of_a_file(&head) {
            return Err(DataError::Other { path: path.to_path_buf(), kind });
        }
        let packing = match head[..] {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            _ => Packing::None,
        };
        Ok(Input { path: path.to_path_buf(), packing })
    }

    /// The file's own error, or what its packing says of it.
    pub fn error(&self, error: &std::io::Error) -> DataError {
        let why = match self.packing {
            Packing::None => format!("it cannot be read: {error}"),
            _ => format!("it cannot be unpacked: {error}\nhint: copy or download the file again"),
        };
        DataError::Format { path: self.path.clone(), why }
    }

    fn file(&self) -> Result<File, DataError> {
        File::open(&self.path).map_err(|error| DataError::Open { path: self.path.clone(), error })
    }

    /// The bytes inside, one after the other.
    pub fn reader(&self) -> Result<Box<dyn Read>, DataError> {
        let file = self.file()?;
        Ok(match self.packing {
            Packing::None => Box::new(file),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 18, file))),
            Packing::Zstd => Box::new(zstd::stream::read::Decoder::new(file).map_err(|e| self.error(&e))?),
        })
    }

    /// All bytes inside.
    pub fn bytes(&self) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        self.reader()?.read_to_end(&mut bytes).map_err(|e| self.error(&e))?;
        Ok(bytes)
    }

    /// A file of the bytes inside, which may be read in any order: a temporary one if they are packed.
    pub fn seekable(&self) -> Result<File, DataError> {
        if self.packing == Packing::None {
            return self.file();
        }
        let mut file = tempfile::tempfile_in(super::examples::folder()).map_err(|e| self.error(&e))?;
        std::io::copy(&mut self.reader()?, &mut file).map_err(|e| self.error(&e))?;
        Ok(file)
    }

    /// The first bytes inside, for what they tell: a few megabytes.
    pub fn head(&self) -> Vec<u8> {
        let mut head = Vec::new();
        if let Ok(reader) = self.reader() {
            let _ = reader.take(1 << 24).read_to_end(&mut head);
        }
        head
    }

    /// The text inside, in UTF-8 without a mark (bytes that are none pass through); says whether it was UTF-16.
    pub fn text(&self) -> Result<(Box<dyn BufRead>, bool), DataError> {
        let bad = |why: &str| DataError::Format { path: self.path.clone(), why: why.into() };
        let mut reader = self.reader()?;
        let mut head = Vec::new();
        reader.by_ref().take(4).read_to_end(&mut head).map_err(|e| self.error(&e))?;
        let skip = match head[..] {
            [0xff, 0xfe, 0, 0] | [0, 0, 0xfe, 0xff] => return Err(bad("it is UTF-32\nhint: save it as UTF-8")),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                let unit = if head[0] == 0xff { u16::from_le_bytes } else { u16::from_be_bytes };
                reader.read_to_end(&mut head).map_err(|e| self.error(&e))?;
                let units: Vec<u16> = head[2..].chunks(2).map(|c| unit([c[0], *c.get(1).unwrap_or(&0)])).collect();
                let text = String::from_utf16(&units);
                let text = text.map_err(|_| bad("it is not valid UTF-16\nhint: save it as UTF-8"))?;
                return Ok((Box::new(Cursor::new(text.into_bytes())), true));
            }
            [a, b, ..] if (a == 0) != (b == 0) => {
                return Err(bad("it looks like UTF-16 without a byte-order mark\nhint: save it as UTF-8"));
            }
            [0xef, 0xbb, 0xbf, ..] => 3,
            _ => 0,
        };
        let rest = Cursor::new(head.split_off(skip)).chain(reader);
        Ok((Box::new(BufReader::with_capacity(1 << 18, rest)), false))
    }

    /// The SHA-256 of the file as it stands, in hexadecimal.
    pub fn digest(&self) -> Result<String, DataError> {
        let (mut file, mut sha, mut part) = (self.file()?, sha2::Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut part) {
                Ok(0) => return Ok(hexadecimal(&sha.finalize())),
                Ok(n) => sha.update(&part[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.error(&e)),
            }
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The SHA-256 of bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&sha2::Sha256::digest(bytes))
}
