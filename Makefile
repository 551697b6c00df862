# `make demo` and `make test` set everything up by themselves, once.
PYTHON ?= python3.11
BIN := .venv/bin
# glibc gives freed memory back to the kernel after each step; keeping it took system time from 25 % to 0.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 1000000000000
export MALLOC_TOP_PAD_ = 536870912

.DEFAULT_GOAL := help
.PHONY: help demo speak test bench experiments rebuild lint clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: .venv/installed  ## the whole job on the embedded corpus, offline: prepare, train, speak (under 20 minutes on 2 cores)
	$(BIN)/python data_prep.py --corpus demo
	$(BIN)/python train.py @demo/recipe.txt
	$(BIN)/python generate_sample.py --model runs/demo --text "الصَّبْرُ مِفْتَاحُ الْفَرَجِ." --out runs/demo/demo.wav
	@echo "listen: runs/demo/demo.wav (aplay runs/demo/demo.wav, or any player)"

speak: .venv/installed  ## speak a proverb with the embedded model: speak.wav
	$(BIN)/python generate_sample.py --model demo/bundle --text "الصَّبْرُ مِفْتَاحُ الْفَرَجِ." --out speak.wav

test: .venv/installed  ## the tests: CPU, no network
	$(BIN)/python -m pytest

bench: .venv/installed  ## speed, as ratios measured in one run: samples/bench.json, some 20 minutes
	$(BIN)/python tests/bench.py

experiments: .venv/installed  ## what helps and what does not, on the demo: samples/experiments.json, hours
	$(BIN)/python data_prep.py --corpus demo
	$(BIN)/python measure/experiments.py

rebuild: .venv/installed  ## every model, sample and figure anew, each step where it stopped: most of a day, see CONTRIBUTING
	$(BIN)/python demo/train_codec.py
	$(BIN)/python measure/codec.py
	$(BIN)/python demo/build_corpus.py
	$(BIN)/python measure/train_ear.py
	$(BIN)/python measure/planted.py
	$(BIN)/python demo/build_english.py --out data/english_corpus
	$(BIN)/python data_prep.py --corpus data/english_corpus --base demo --romanized --out data/english
	$(BIN)/python demo/train_base.py --data data/english --init scratch --batch-size 16 --optimizer muon --lr 1e-3 \
	    --schedule cosine --warmup-steps 200 --text-dropout 0.1 --distill-draws 2 --epochs 1000 --max-steps 11000
	$(BIN)/python demo/keep.py base runs/english
	$(BIN)/python demo/build_arabic.py --out data/arabic_corpus
	$(BIN)/python data_prep.py --corpus data/arabic_corpus --base demo --out data/arabic
	$(BIN)/python train.py @demo/recipe.txt --data data/arabic --max-steps 3600 --max-hours 3
	$(BIN)/python demo/keep.py bundle runs/arabic
	$(MAKE) demo experiments
	$(BIN)/python measure/heldout.py
	$(BIN)/python measure/bundle.py
	$(BIN)/python generate_sample.py --evaluate --data data/demo --model runs/demo --out runs/evaluation/demo \
	    --asr "recogniser=program:$(BIN)/python measure/ear.py"
	cp runs/evaluation/demo/evaluation.json samples/evaluation_demo.json
	$(BIN)/python measure/samples.py
	$(BIN)/python measure/tables.py

lint: .venv/installed  ## ruff, code and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove caches and runs made here (not .venv)
	rm -rf data runs .pytest_cache .ruff_cache
