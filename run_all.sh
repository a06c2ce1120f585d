#!/usr/bin/env bash
# The one command: set up what is missing, run a study, build its paper. `./run_all.sh --help` lists the options.
# Written for bash 3.2 and later (macOS): an array that may be empty is expanded as ${name[@]+"${name[@]}"}.
set -euo pipefail

called_from=$PWD
repository=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
tex_commands=(latexmk pdflatex bibtex kpsewhich)
tex_styles=(geometry microtype booktabs natbib hyperref xcolor graphicx amsmath caption etoolbox eso-pic lmodern)
tex_packages=(latexmk texlive-latex-recommended lmodern poppler-utils)   # of Debian and Ubuntu

mode=run          # run | test | lab | bench
study=builtin
notebook=
publish=no
output=
pdf=yes
cores=
run_options=()    # the options given that belong to running a study
passed_on=()      # what follows `--`

usage() {
    cat <<'HELP'
./run_all.sh                       set up, run the builtin study, build paper/main.pdf
./run_all.sh --test                set up, run the tests
./run_all.sh --study NAME|FILE     another study: a name from configs/, or a YAML file
./run_all.sh --only NOTEBOOK       that notebook's jobs again, and what is missing upstream; nothing downstream
./run_all.sh --publish             copy replicates to results/<study>/ as they finish; those already there are not run again
./run_all.sh --out DIR             another place for runs, tables and PDF
./run_all.sh --no-pdf              no paper, so no TeX is needed
./run_all.sh --cores N             how many cores to use
./run_all.sh --lab                 set up, open JupyterLab
./run_all.sh --bench               set up, run the benchmarks
./run_all.sh ... -- ARGS           ARGS go to Snakemake (to pytest after --test, to JupyterLab after --lab)
./run_all.sh --help                this text
HELP
}

say() { printf 'set-up: %s\n' "$*"; }

# A wrong call ends with status 2, a set-up that cannot go on with status 1; both say what to do next.
refuse() { printf 'run_all.sh: %s\n' "$*" >&2; exit 2; }
give_up() { printf 'run_all.sh: %s\n' "$*" >&2; exit 1; }

# --- the command line -------------------------------------------------------------------------------------------

# names_in FOLDER SUFFIX: the names of the files there without their suffix, on one line, separated by spaces
names_in() {
    local file names=()
    for file in "$repository/$1"/*"$2"; do
        [ -e "$file" ] && names+=("$(basename -- "$file" "$2")")
    done
    printf '%s' "${names[*]-}"
}

# is_known NAME FOLDER SUFFIX: a name is compared, never expanded, so that nothing in it can act
is_known() {
    local file
    for file in "$repository/$2"/*"$3"; do
        [ -e "$file" ] && [ "$(basename -- "$file" "$3")" = "$1" ] && return 0
    done
    return 1
}

from_caller() {
    case $1 in
        /*) printf '%s' "$1" ;;
        *) printf '%s/%s' "$called_from" "$1" ;;
    esac
}

set_mode() {
    [ "$mode" = run ] || [ "$mode" = "$1" ] || refuse "--$mode and --$1 exclude each other; give one of them"
    mode=$1
}

needs_value() {
    [ -n "${2-}" ] || refuse "$1 needs a value; ./run_all.sh --help shows it"
}

parse_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --study) needs_value "$@"; study=$2; run_options+=("$1"); shift ;;
            --only) needs_value "$@"; notebook=$2; run_options+=("$1"); shift ;;
            --out) needs_value "$@"; output=$2; run_options+=("$1"); shift ;;
            --cores) needs_value "$@"; cores=$2; run_options+=("$1"); shift ;;
            --publish) publish=yes; run_options+=("$1") ;;
            --no-pdf) pdf=no ;;
            --test | --lab | --bench) set_mode "${1#--}" ;;
            --help) usage; exit 0 ;;
            --) shift; passed_on=("$@"); return ;;
            *) refuse "unknown option: $1; known: --test --study --only --publish --out --no-pdf --cores --lab --bench --help --" ;;
        esac
        shift
    done
}

check_options() {
    if [ "$mode" != run ]; then
        [ ${#run_options[@]} -eq 0 ] || refuse "${run_options[0]} belongs to running a study, not to --$mode; leave one of them out"
        return
    fi
    check_study
    if [ -n "$notebook" ] && ! is_known "$notebook" notebooks .ipynb; then
        refuse "unknown notebook: $notebook; known: $(names_in notebooks .ipynb)"
    fi
    case $cores in
        *[!0-9]* | 0*) refuse "--cores: found $cores, wanted a whole number from 1 on" ;;
    esac
    [ -z "$output" ] || output=$(from_caller "$output")
}

check_study() {
    is_known "$study" configs .yaml && return
    local file
    file=$(from_caller "$study")
    if [[ $study == *.yaml && -f $file ]]; then
        study=$file
        return
    fi
    refuse "unknown study: $study; known: $(names_in configs .yaml); or give a YAML file that exists"
}

# --- TeX --------------------------------------------------------------------------------------------------------

missing_tex() {
    local name found missing=()
    for name in "${tex_commands[@]}"; do
        command -v "$name" >/dev/null || missing+=("$name")
    done
    if [ "$mode" = test ]; then   # the tests read the text of the PDF
        command -v pdftotext >/dev/null || missing+=(pdftotext)
    fi
    if command -v kpsewhich >/dev/null; then
        found=$(kpsewhich "${tex_styles[@]/%/.sty}" || true)   # fails where one is missing, and prints the others
        for name in "${tex_styles[@]}"; do
            [[ $found == *"/$name.sty"* ]] || missing+=("$name.sty")
        done
    fi
    printf '%s' "${missing[*]-}"
}

# run_as_root COMMAND...: fails where that would need a password
run_as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

how_to_install_tex() {
    if command -v apt-get >/dev/null; then
        printf 'sudo apt-get install --no-install-recommends %s' "${tex_packages[*]}"
    elif command -v brew >/dev/null; then
        printf 'brew install --cask mactex-no-gui && brew install poppler'
    else
        printf 'install TeX Live with latexmk and the LaTeX packages %s' "${tex_styles[*]}"
    fi
}

install_tex() {
    local missing
    missing=$(missing_tex)
    [ -n "$missing" ] || return 0
    if command -v apt-get >/dev/null && run_as_root true 2>/dev/null; then
        say "TeX lacks $missing; installing ${tex_packages[*]} (a minute or more, up to 360 MB on disk)"
        local started=$SECONDS
        run_as_root apt-get update -qq || say "the package lists could not be refreshed; trying with those at hand"
        if run_as_root apt-get install -y -qq --no-install-recommends "${tex_packages[@]}" >/dev/null; then
            say "TeX installed in $((SECONDS - started)) s"
        fi
        missing=$(missing_tex)
    fi
    [ -z "$missing" ] || give_up "TeX lacks $missing. Type:  $(how_to_install_tex)
or leave the paper out:  ./run_all.sh --no-pdf"
}

# --- Python -----------------------------------------------------------------------------------------------------

# -I keeps the modules beside environment.py, and those of the user's home, from standing in for others
satisfies_lock() {
    "$1" -I "$repository/src/sparsecl/environment.py" "$repository/requirements.lock" 2>/dev/null
}

# use_python PYTHON: its commands come first from here on
use_python() {
    local prefix
    prefix=$("$1" -I -c 'import sys; print(sys.prefix)')
    export PATH="$prefix/bin:$PATH"
    hash -r
    say "using the Python environment $prefix"
}

# A marker beside an environment says that its making has begun and not ended: whatever a killed set-up left there
# may look complete, so the next one makes it anew. It holds the maker's process number, so that two do not mix.
begin_making() {
    local marker=$1.incomplete maker
    if [ -e "$marker" ]; then
        maker=$(cat -- "$marker")
        if [ -n "$maker" ] && [ "$maker" != $$ ] && kill -0 "$maker" 2>/dev/null; then
            give_up "process $maker is making $1 just now. Wait for it; if it is no set-up of this project, type:  rm '$marker'"
        fi
        say "an earlier set-up was interrupted; making $1 anew"
        rm -rf -- "$1"
    fi
    printf '%s' $$ >"$marker"
}

end_making() { rm -f -- "$1.incomplete"; }

# is_ready PREFIX: an environment of this project that is complete and satisfies the lock
is_ready() {
    [ -x "$1/bin/python" ] && [ ! -e "$1.incomplete" ] && satisfies_lock "$1/bin/python" >/dev/null
}

# make_conda_environment: fails where there is no conda, or where it cannot do it
make_conda_environment() {
    local manager prefix=$repository/.conda started=$SECONDS
    for manager in conda mamba micromamba; do
        command -v "$manager" >/dev/null && break
    done
    command -v "$manager" >/dev/null || return 1
    say "making the environment .conda with $manager from environment.yml (some minutes)"
    begin_making "$prefix"
    rm -rf -- "$prefix"   # conda does not create into an existing environment, and updates leave old packages
    local create=(env create)
    [ "$manager" = micromamba ] && create=(create)
    if CONDA_ALWAYS_YES=true MAMBA_ALWAYS_YES=true \
        "$manager" "${create[@]}" --prefix "$prefix" --file "$repository/environment.yml" </dev/null &&
        satisfies_lock "$prefix/bin/python"; then
        end_making "$prefix"
        say "made .conda in $((SECONDS - started)) s"
        return 0
    fi
    rm -rf -- "$prefix"
    end_making "$prefix"
    say "$manager could not make the environment, so a venv takes its place"
    return 1
}

is_python_311() {
    "$1" -I -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

find_python_311() {
    local candidate
    for candidate in python3.11 python3 python; do
        if is_python_311 "$candidate"; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    return 1
}

how_to_install_python() {
    if command -v apt-get >/dev/null && apt-cache show python3.11-venv >/dev/null 2>&1; then
        printf 'sudo apt-get install python3.11 python3.11-venv'
    elif command -v brew >/dev/null; then
        printf 'brew install python@3.11'
    else
        printf 'conda create -n sparsecl python=3.11   (with a conda of yours; then run this again)'
    fi
}

# install_packages PYTHON: a renewed pip reads the lock three times as fast as the one that Python 3.11 brings, and
# compiling only what is imported, when it is, halves the work
install_packages() {
    local quiet=()
    [ -t 1 ] || quiet=(--quiet)   # progress is for people; a log keeps the warnings
    local install=("$1" -m pip install --disable-pip-version-check ${quiet[@]+"${quiet[@]}"})
    "${install[@]}" --upgrade pip || say "pip could not renew itself; going on with the one at hand"
    "${install[@]}" --no-compile --requirement "$repository/requirements.lock"
}

make_venv() {
    local base prefix=$repository/.venv started=$SECONDS
    base=$(find_python_311) || give_up "found no Python 3.11 and no conda. Type:  $(how_to_install_python)"
    say "making the environment .venv with $base from requirements.lock (2 to 5 minutes)"
    begin_making "$prefix"
    is_python_311 "$prefix/bin/python" || rm -rf -- "$prefix"   # a venv cannot change its Python
    "$base" -m venv "$prefix" || give_up "$base could not make a venv. Type:  $(how_to_install_python)"
    install_packages "$prefix/bin/python" ||
        give_up "pip could not install requirements.lock; its message is above. Mend that and run the same command again."
    satisfies_lock "$prefix/bin/python" || give_up "pip ended well, but .venv differs from requirements.lock as listed above"
    end_making "$prefix"
    say "made .venv in $((SECONDS - started)) s"
}

set_up_python() {
    local prefix
    if command -v python >/dev/null && satisfies_lock python >/dev/null; then
        use_python python
        return
    fi
    for prefix in "$repository/.venv" "$repository/.conda"; do
        if is_ready "$prefix"; then
            use_python "$prefix/bin/python"
            return
        fi
    done
    say "no environment at hand satisfies requirements.lock"
    if make_conda_environment; then
        use_python "$repository/.conda/bin/python"
    else
        make_venv
        use_python "$repository/.venv/bin/python"
    fi
}

export_settings() {
    export PYTHONNOUSERSITE=1                                            # packages in the home directory are in no lock
    export PYTHONPATH="$repository/src${PYTHONPATH:+:$PYTHONPATH}"       # this clone's package, whatever is installed
    export JUPYTER_PREFER_ENV_PATH=1                                     # this environment's kernel
    export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false   # jobs run side by side, a thread each
    export LLM_COMPRESSOR_LOG_LEVEL=ERROR HF_HUB_DISABLE_TELEMETRY=1
}

# --- what was asked for -----------------------------------------------------------------------------------------

run_study() {
    local options=(--study "$study")
    [ -z "$notebook" ] || options+=(--only "$notebook")
    [ "$publish" = no ] || options+=(--publish)
    [ -z "$output" ] || options+=(--out "$output")
    [ "$pdf" = yes ] || options+=(--no-pdf)
    [ -z "$cores" ] || options+=(--cores "$cores")
    [ ${#passed_on[@]} -eq 0 ] || options+=(-- "${passed_on[@]}")
    exec python -m sparsecl.workflow "${options[@]}"
}

run_benchmarks() {
    local script
    for script in benchmarks/*.py; do
        [ -e "$script" ] || give_up "no benchmark found in $repository/benchmarks"
        printf '\n--- %s\n' "$script"
        python "$script" ${passed_on[@]+"${passed_on[@]}"}
    done
}

main() {
    parse_options "$@"
    check_options
    trap 'exit 130' INT   # or bash goes on after a child that handled the interrupt itself
    cd -- "$repository"
    if [ "$pdf" = yes ] && { [ "$mode" = run ] || [ "$mode" = test ]; }; then
        install_tex
    fi
    export PYTHONNOUSERSITE=1
    set_up_python
    export_settings
    say "ready after $SECONDS s"
    case $mode in
        run) run_study ;;
        test) exec python -m pytest --durations=10 ${passed_on[@]+"${passed_on[@]}"} ;;
        lab) exec python -m jupyterlab --notebook-dir="$repository/notebooks" ${passed_on[@]+"${passed_on[@]}"} ;;
        bench) run_benchmarks ;;
    esac
}

main "$@"
