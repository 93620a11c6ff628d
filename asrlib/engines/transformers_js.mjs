// Whisper under Transformers.js, for asrlib.engines.transformers_js: one line of JSON in for each question, one out for each answer.
//
//   node transformers_js.mjs FOLDER             the folder in which npm has installed @huggingface/transformers
//
//   {"number": 1, "model": FOLDER, "threads": 2}          loads a model that Optimum has exported; the answer is {"number": 1}
//   {"number": 2, "sound": FILE, "options": {...}}        transcribes raw samples: float32, little-endian, 16 kHz, mono; the options
//                                                         are the pipeline's; the answer is {"number": 2, "text": ...,
//                                                         "chunks": ...}
//
// Where a question cannot be answered, the answer is {"number": 2, "error": ...}. It ends when nobody can ask any more.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import readline from "node:readline";

for (const way of ["log", "info", "debug"]) console[way] = console.error; // answers alone go to standard output
const { env, pipeline } = createRequire(path.resolve(process.argv[2], "package.json"))("@huggingface/transformers");
env.allowRemoteModels = false;
env.useFSCache = false;

let pipe;

async function load(model, threads) {
  pipe = await pipeline("automatic-speech-recognition", model, {
    dtype: "fp32", // the graphs without a suffix in their names; what precision they hold is theirs
    subfolder: "", // they lie beside config.json
    device: "cpu",
    session_options: { intraOpNumThreads: threads, interOpNumThreads: 1, logSeverityLevel: 3 },
  });
}

async function transcribe(sound, options) {
  const { buffer, byteOffset, byteLength } = fs.readFileSync(sound);
  return await pipe(new Float32Array(buffer, byteOffset, byteLength / 4), options);
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { number, model, threads, sound, options } = JSON.parse(line);
  let answer;
  try {
    answer = model ? await load(model, threads) : await transcribe(sound, options);
  } catch (error) {
    answer = { error: String(error.message ?? error).split("\n")[0] };
  }
  process.stdout.write(JSON.stringify({ number, ...answer }) + "\n");
}
