// An occlusion map in JavaScript: heatmap.onnx in onnxruntime-web (WebAssembly), as a browser runs it.
//
//   kcompile export exported --model resnet18 --embed     (in Python's environment)
//   npm install onnxruntime-web
//   node heatmap.mjs exported 32
//
// The picture is noise here; a page would fill `image` with pixels, prepared as manifest.preprocessing says.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const [folder = "exported", step = "32"] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(`${folder}/kcompile.json`, "utf8"));
const [channels, height, width] = manifest.input_shape;
const [rows, cols] = manifest.patch_shape;

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(`${folder}/heatmap.onnx`));
const image = Float32Array.from({ length: channels * height * width }, () => Math.random() * 2 - 1);
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
console.log(`class ${target}, score ${base[target].toFixed(4)}; with the patch at each position:`);
for (let first = 0; first < found.scores.dims[0]; first += across) {
  const line = Array.from({ length: across }, (_, i) => found.scores.data[(first + i) * classes + target]);
  console.log(line.map((score) => score.toFixed(4)).join(" "));
}
