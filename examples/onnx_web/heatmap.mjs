// An occlusion map in JavaScript: heatmap.onnx in onnxruntime-web (WebAssembly), as a browser runs it.
//
//   kcompile export exported --model resnet18 --embed     (in Python's environment)
//   npm install onnxruntime-web
//   node heatmap.mjs exported 32 [pixels.bin]
//
// The picture is the file's float32 values [channels, rows, cols], prepared as manifest.preprocessing says, or noise; a
// page would fill `image` with its own pixels. Scores are printed with six digits.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const [folder = "exported", step = "32", pixels] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(`${folder}/kcompile.json`, "utf8"));
const [channels, height, width] = manifest.input_shape;
const [rows, cols] = manifest.patch_shape;

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(`${folder}/heatmap.onnx`));
const count = channels * height * width;
const image = pixels
  ? new Float32Array(new Uint8Array(readFileSync(pixels)).buffer)
  : Float32Array.from({ length: count }, () => Math.random() * 2 - 1);
if (image.length !== count) throw new Error(`${pixels} holds ${image.length} values; the model takes ${count}`);
const found = await session.run({
  image: new ort.Tensor("float32", image, [1, channels, height, width]),
  patch: new ort.Tensor("float32", new Float32Array(channels * rows * cols), [channels, rows, cols]),
  positions: new ort.Tensor("int64", new BigInt64Array(0), [0, 2]), // none but the grid's
  stride: new ort.Tensor("int64", BigInt64Array.of(BigInt(step), BigInt(step)), [2]),
});

const base = found.base_score.data;
const target = base.indexOf(Math.max(...base));
const classes = found.scores.dims[1];
const across = Math.floor((width - cols) / Number(step)) + 1;
console.log(`class ${target}, score ${base[target].toFixed(6)}; with the patch at each position:`);
for (let first = 0; first < found.scores.dims[0]; first += across) {
  const line = Array.from({ length: across }, (_, i) => found.scores.data[(first + i) * classes + target]);
  console.log(line.map((score) => score.toFixed(6)).join(" "));
}
