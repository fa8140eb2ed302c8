# shellcheck shell=bash disable=SC2034  # read by local/data.sh
# Where corpora were unpacked on this machine; --corpus_dir wins. Empty: not here.
COMMONVOICE=                    # holds .../<locale>/train.tsv, e.g. cv-corpus-26.0-2026-06-12/hi
INDICVOICES=                    # holds <Hindi|Punjabi|Telugu>/v1/{train,valid}
KATHBATH=                       # holds kb_data_clean_m4a (and kb_data_noisy_m4a), or the hub's <hindi|...>/train-*.parquet
MLS=                            # mls_italian or mls_italian_opus
SHRUTILIPI=                     # holds shrutilipi_fairseq/<hindi|...>/train.tsv and data/<hindi|...>
