//! `secateur forward`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use safetensors::tensor::{Dtype, TensorView};
use secateur::data::rows;
use secateur::dump::{DumpOptions, Dumped, dump};
use secateur::model::{Head, HeadRequest};
use secateur::prune::UnitMasks;
use secateur::report::format;
use secateur::report::record::InputFile;
use secateur::session::{Device, Session};
use secateur::train::checkpoint::write_atomically;
use secateur::{Error, Result};
use serde_json::json;

use super::context::Context;
use super::load;
use super::options::ModelOptions;

/// Run given token ids through a model and write everything it computes, for checking against another program.
///
/// Writes a safetensors file with logits, hidden.N, ctx.N, ffn.N (valid tokens of all rows, in order), loss,
/// loss_per_row and, if asked for, grad/<parameter>, dhead_per_example and dneuron_per_example.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  secateur forward --model DIR --inputs rows.safetensors --out computed.safetensors --gradients"
)]
pub struct Forward {
    #[command(flatten)]
    model: ModelOptions,
    /// Rows: safetensors with input_ids, cu_seqlens and where they apply token_type_ids, labels, start_positions,
    /// end_positions; or JSON with one list a row.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Safetensors file to write (F32; F64 with --device reference).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Apply these head and neuron masks: {"heads": [[…]; layers], "neurons": [[…]; layers]}.
    #[arg(long, value_name = "FILE")]
    masks: Option<PathBuf>,
    /// Gradients of the mean loss by every parameter.
    #[arg(long)]
    gradients: bool,
    /// Gradients of each row's own loss by every head and neuron mask, at the masks given or at ones.
    #[arg(long)]
    mask_gradients: bool,
    /// Most tokens of a batch.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    token_budget: usize,
}

impl Forward {
    pub fn run(&self, context: &mut Context) -> Result<()> {
        let mut record = context.record("forward");
        let (directory, config) = load::configuration(&self.model.model)?;
        let examples = rows::read(&self.inputs)?;
        record.inputs.push(InputFile::hash("inputs", &self.inputs)?);
        let masks = self.masks.as_deref().map(UnitMasks::read).transpose()?;
        let request = match config.saved_head {
            Some(_) => HeadRequest::AsSaved,
            None => HeadRequest::Task(Head::Backbone),
        };
        let model = load::weights(context, &mut record, &directory, &self.model.model, request)?;
        let mut session = Session::new(model, context.device)?;
        let options = DumpOptions {
            masks,
            gradients: self.gradients,
            mask_gradients: self.mask_gradients,
            hooks: true,
            token_budget: self.token_budget,
        };
        let (rows, tokens) = (examples.len(), examples.iter().map(|e| e.length()).sum::<usize>());
        let tensors = dump(&mut session, examples, &options, &context.progress)?;
        write(&self.out, &tensors, context.device)?;

        let loss = tensors.get("loss").map(|(_, values)| values[0]);
        record.result = Some(json!({
            "out": self.out.display().to_string(),
            "rows": rows,
            "tokens": tokens,
            "loss": loss,
            "tensors": tensors.iter().map(|(name, (shape, _))| (name.clone(), json!(shape))).collect::<serde_json::Map<_, _>>(),
        }));
        context.finish(&mut record);
        context.show(&[record], |_| {
            let loss = loss.map_or(String::new(), |loss| format!(", loss {}", format::metric(loss)));
            format!(
                "{rows} rows, {tokens} tokens{loss}; {} tensors in {}\n",
                tensors.len(),
                self.out.display()
            )
        });
        Ok(())
    }
}

fn write(path: &Path, tensors: &BTreeMap<String, Dumped>, device: Device) -> Result<()> {
    let wide = device == Device::Reference;
    let dtype = if wide { Dtype::F64 } else { Dtype::F32 };
    let bytes: Vec<Vec<u8>> = tensors
        .values()
        .map(|(_, values)| {
            if wide {
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            } else {
                values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect()
            }
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, (shape, _)), bytes)| {
        let view = TensorView::new(dtype, shape.clone(), bytes);
        view.map(|view| (name.as_str(), view)).map_err(|e| Error::format(path, format!("tensor {name}: {e}")))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let file = safetensors::serialize(views, None).map_err(|e| Error::format(path, e.to_string()))?;
    write_atomically(path, &file)
}
