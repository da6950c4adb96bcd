#!/usr/bin/env bash
# Trains mt3.mini on one GPU, from MIDI files to the file of weights and what its Card says of it.
#
#   MIDI=~/midi benchmarks/launch/mt3_mini.sh
#   TINY=1 benchmarks/launch/mt3_mini.sh        # all of it in small, on any CPU, with no files
#
# Run it again after a stop: what is rendered stays, a training goes on from its last checkpoint, and
# what is finished is passed over. The environment has musicjax[cuda,train] (TINY: musicjax[train]),
# and the system FluidSynth. Everything is written below $OUT.
set -euo pipefail

MIDI=${MIDI:-data/midi}                        # folder of the archives named below
SCORES=${SCORES:-openscore_quartets openscore_lieder pop909 giantmidi_piano}
GROOVES=${GROOVES:-groove}                     # drums
PIANO=${PIANO:-giantmidi_piano pop909}
FONTS=${FONTS:-/usr/share/sounds/sf2/FluidR3_GM.sf2 /usr/share/sounds/sf3/MuseScore_General.sf3}
OUT=${OUT:-runs/mt3-mini-made}
HOURS=${HOURS:-24}                             # of bands
PIANO_HOURS=${PIANO_HOURS:-20}
DRUM_HOURS=${DRUM_HOURS:-1}
VALID_HOURS=${VALID_HOURS:-0.3}
EARS_STEPS=${EARS_STEPS:-10000}                # of the first training: to hear
STEPS=${STEPS:-40000}                          # of the second: to write
BATCH=${BATCH:-128}                            # clips of two seconds
PROCESSES=${PROCESSES:-$(nproc)}               # that render, and that prepare clips
TINY=${TINY:-}

say() { printf '\n== %s (%d min so far)\n' "$1" $((SECONDS / 60)); }
render() { # FOLDER SPLIT HOURS SEED, and what is played by what
  musicjax data render --out "$OUT/data/$1/$2" --split "$2" --hours "$3" --seed "$4" \
    --processes "$PROCESSES" "${@:5}"
}
archives() { for name in "$@"; do printf '%s\n' "$MIDI/$name.tar.gz"; done; }

if [ -n "$TINY" ]; then
  EARS_STEPS=2 STEPS=2 BATCH=2
  training=(--data.workers 0 --data.valid composer:band --model.codec.max-tokens 24
    --checkpoint.save-every 1 --log-every 1 --tensorboard False)
  bands=composer:band drums=composer:band # the built-in band; no fonts, no scores
  say "piano, to train"
  render piano train 0.002 0 --midi composer: --instruments modelled: --excerpt-s 4
else
  training=(--data.workers "$PROCESSES" --data.valid "$OUT/data/bands/valid")
  bands=$OUT/data/bands/train drums=$OUT/data/drums/train
  # shellcheck disable=SC2206 # lists of names and paths, split at spaces
  scores=($SCORES) grooves=($GROOVES) piano=($PIANO) fonts=($FONTS)
  mapfile -t scores < <(archives "${scores[@]}")
  mapfile -t grooves < <(archives "${grooves[@]}")
  mapfile -t piano < <(archives "${piano[@]}")
  band=(--ensemble --midi "${scores[@]}" composer: --drums "${grooves[@]}"
    --instruments "${fonts[@]}")
  say "bands, to train and to validate"
  render bands train "$HOURS" 0 "${band[@]}"
  render bands valid "$VALID_HOURS" 1 "${band[@]}"
  say "drums and pianos alone, to train"
  render drums train "$DRUM_HOURS" 0 --no-piano --midi "${grooves[@]}" --instruments "${fonts[@]}"
  render piano train "$PIANO_HOURS" 0 --midi "${piano[@]}" --instruments modelled: "${fonts[@]}"
fi
training+=(--data.train "$bands" "$OUT/data/piano/train" "$drums" --data.batch-size "$BATCH")

say "first training: to hear"
musicjax train mt3 mini --model.token-weight 0 --steps "$EARS_STEPS" --output "$OUT/ears" \
  --init onsets_frames.small --init-names onset.stack=stem "${training[@]}"

say "second training: to write"
musicjax train mt3 mini --steps "$STEPS" --output "$OUT/mini" --init "$OUT/ears" "${training[@]}"

# The best of either training: float16 to store, float32 to compute in, since it is heard on CPUs.
say "weights"
for run in ears mini; do
  file=$OUT/$run.safetensors
  musicjax convert "$OUT/$run/best.safetensors" --dtype float16 --compute-dtype float32 -o "$file"
  echo "sha256=\"$(sha256sum "$file" | cut -d ' ' -f 1)\", size_bytes=$(stat -c %s "$file")"
done
echo "Score them: musicjax eval and benchmarks/accuracy.py take such a file as a model."
