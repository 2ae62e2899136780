//! Inflate, written from RFC 1951 for clearness: slow, bit by bit, one symbol after another.
//!
//! Knows: what zlib refuses, and what a lenient decoder (libdeflate) makes of some of that.
//! Does not know: windows or streams that go on; all is in memory.

/// What to do with what the RFC does not allow but a decoder can go on after.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Refuse, as zlib does; a stream may go on (or break off) once the output is full.
    Zlib,
    /// Go on; but the stream must end, and exactly fill the output.
    Lenient,
}

/// The stream is broken, or does not fill the output.
#[derive(Debug)]
pub struct Refused;

/// Why decoding stopped before the end of the stream.
enum Stop {
    /// More output than there is room for.
    Full,
    /// The input has run out.
    Empty,
    Broken,
}

const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];
const LENGTH_EXTRA: [u8; 29] = [
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
];
/// The order in which the lengths of the code length code come.
const ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Result<u32, Stop> {
        let byte = self.bytes.get(self.at / 8).ok_or(Stop::Empty)?;
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Ok(u32::from(bit))
    }

    fn number(&mut self, bits: u8) -> Result<u32, Stop> {
        let mut number = 0;
        for i in 0..bits {
            number |= self.bit()? << i;
        }
        Ok(number)
    }
}

/// A canonical Huffman code.
struct Code {
    /// For each length, the symbols with codes of that length, in order.
    symbols: Vec<Vec<u16>>,
    /// How many symbols have codes at all.
    count: usize,
    /// Taken for any bit where the code is incomplete and the rules are lenient.
    only: Option<u16>,
}

impl Code {
    /// `may_have_one`: whether a code of one symbol of length 1 is allowed, though incomplete.
    fn new(lengths: &[u8], rules: Rules, may_have_one: bool) -> Result<Code, Stop> {
        let mut symbols = vec![Vec::new(); 16];
        for (symbol, &length) in lengths.iter().enumerate() {
            symbols[usize::from(length)].push(symbol as u16);
        }
        symbols[0].clear();
        let used: u32 = (1..16).map(|n| (symbols[n].len() as u32) << (15 - n)).sum();
        let count: usize = symbols.iter().map(Vec::len).sum();
        let only = match used {
            0x8000 => None,
            n if n > 0x8000 => return Err(Stop::Broken),
            // Nothing to code at all: any use of it is an error, which zlib finds when it is used.
            0 => (rules == Rules::Lenient || !may_have_one).then_some(0),
            _ if count == 1 && symbols[1].len() == 1 => {
                if rules == Rules::Zlib && !may_have_one {
                    return Err(Stop::Broken);
                }
                (rules == Rules::Lenient).then(|| symbols[1][0])
            }
            _ => return Err(Stop::Broken),
        };
        Ok(Code {
            symbols,
            count,
            only,
        })
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Result<u16, Stop> {
        if let Some(only) = self.only {
            bits.bit()?;
            return Ok(only);
        }
        let (mut code, mut first) = (0usize, 0usize);
        for symbols in &self.symbols[1..] {
            code = code << 1 | bits.bit()? as usize;
            first <<= 1;
            if let Some(&symbol) = code.checked_sub(first).and_then(|i| symbols.get(i)) {
                return Ok(symbol);
            }
            first += symbols.len();
            // No longer code can start like this.
            if self.count <= 1 {
                return Err(Stop::Broken);
            }
        }
        Err(Stop::Broken)
    }
}

/// Fills `out` from a raw deflate stream.
pub fn inflate(stream: &[u8], out: &mut [u8], rules: Rules) -> Result<(), Refused> {
    let mut bits = Bits {
        bytes: stream,
        at: 0,
    };
    let mut done = 0;
    match (blocks(&mut bits, out, &mut done, rules), rules) {
        (Ok(()), _) if done == out.len() => Ok(()),
        (Err(Stop::Full | Stop::Empty), Rules::Zlib) if done == out.len() => Ok(()),
        _ => Err(Refused),
    }
}

fn blocks(bits: &mut Bits<'_>, out: &mut [u8], done: &mut usize, rules: Rules) -> Result<(), Stop> {
    loop {
        let last = bits.bit()? == 1;
        match bits.number(2)? {
            0 => stored(bits, out, done)?,
            1 => {
                let mut lengths = [8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                let literals = Code::new(&lengths, rules, true)?;
                let distances = Code::new(&[5; 32], rules, true)?;
                symbols(bits, &literals, &distances, out, done, rules)?;
            }
            2 => {
                let (literals, distances) = dynamic_codes(bits, rules)?;
                symbols(bits, &literals, &distances, out, done, rules)?;
            }
            _ => return Err(Stop::Broken),
        }
        if last {
            return Ok(());
        }
    }
}

fn stored(bits: &mut Bits<'_>, out: &mut [u8], done: &mut usize) -> Result<(), Stop> {
    bits.at = bits.at.next_multiple_of(8);
    let len = bits.number(16)?;
    if bits.number(16)? != !len & 0xffff {
        return Err(Stop::Broken);
    }
    for _ in 0..len {
        // Room is asked for first: a full output is no reason to read on.
        if *done == out.len() {
            return Err(Stop::Full);
        }
        out[*done] = bits.number(8)? as u8;
        *done += 1;
    }
    Ok(())
}

fn dynamic_codes(bits: &mut Bits<'_>, rules: Rules) -> Result<(Code, Code), Stop> {
    let literals = bits.number(5)? as usize + 257;
    let distances = bits.number(5)? as usize + 1;
    let counts = bits.number(4)? as usize + 4;
    if rules == Rules::Zlib && (literals > 286 || distances > 30) {
        return Err(Stop::Broken);
    }
    let mut code_lengths = [0; 19];
    for &i in &ORDER[..counts] {
        code_lengths[i] = bits.number(3)? as u8;
    }
    let code = Code::new(&code_lengths, rules, false)?;
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (length, times) = match code.symbol(bits)? {
            16 => {
                let times = 3 + bits.number(2)?;
                (*lengths.last().ok_or(Stop::Broken)?, times)
            }
            17 => (0, 3 + bits.number(3)?),
            18 => (0, 11 + bits.number(7)?),
            length => (length as u8, 1),
        };
        lengths.extend(std::iter::repeat_n(length, times as usize));
    }
    let no_end_of_block = lengths[256] == 0 && rules == Rules::Zlib;
    if lengths.len() > literals + distances || no_end_of_block {
        return Err(Stop::Broken);
    }
    let (literals, distances) = lengths.split_at(literals);
    Ok((
        Code::new(literals, rules, true)?,
        Code::new(distances, rules, true)?,
    ))
}

fn symbols(
    bits: &mut Bits<'_>,
    literals: &Code,
    distances: &Code,
    out: &mut [u8],
    done: &mut usize,
    rules: Rules,
) -> Result<(), Stop> {
    loop {
        let symbol = usize::from(literals.symbol(bits)?);
        if symbol == 256 {
            return Ok(());
        }
        if symbol < 256 {
            *out.get_mut(*done).ok_or(Stop::Full)? = symbol as u8;
            *done += 1;
            continue;
        }
        let index = match rules {
            Rules::Zlib => symbol - 257,
            Rules::Lenient => (symbol - 257).min(28),
        };
        let &base = LENGTH_BASE.get(index).ok_or(Stop::Broken)?;
        let length = usize::from(base) + bits.number(LENGTH_EXTRA[index])? as usize;
        let mut distance_code = usize::from(distances.symbol(bits)?);
        if distance_code >= 30 {
            if rules == Rules::Zlib {
                return Err(Stop::Broken);
            }
            distance_code = 29;
        }
        let extra = (distance_code / 2).saturating_sub(1);
        let base = match distance_code {
            0..4 => distance_code + 1,
            code => ((2 + code % 2) << extra) + 1,
        };
        let distance = base + bits.number(extra as u8)? as usize;
        if *done == out.len() {
            return Err(Stop::Full);
        }
        if distance > *done {
            return Err(Stop::Broken);
        }
        for _ in 0..length {
            if *done == out.len() {
                return Err(Stop::Full);
            }
            out[*done] = out[*done - distance];
            *done += 1;
        }
    }
}
