"""Oracle Net (TNS) and TTC, as far as python-oracledb in thin mode speaks them.

Order of the layers: ``encoding``, ``vector_image`` and ``json_image`` turn values into bytes;
``packets`` cuts bytes into packets; ``answers`` builds what a server says; ``login``,
``lob_calls``, ``binds`` and ``statements`` read what a client asks; ``session`` holds one
connection together and ``engine_thread`` runs the engine beside it.

Source of the numbers: facts/oracle-wire.md of this project, measured against the driver.
"""
